//! The admin port: how the process is, what it does, how it is set up.
//!
//! A port of its own, so that what operators and orchestrators ask never waits behind calls and is
//! never reachable where calls are. Parts of the framework add pages to it:
//!
//! ```no_run
//! use antiphon_core::Health;
//! use antiphon_telemetry::Telemetry;
//! use antiphon_telemetry::admin::{Admin, AdminSettings, Page};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut admin = Admin::new(Telemetry::new(), Health::new());
//! admin.page("/sagas", "Sagas by state", |_request| async { Page::json(&["order-1"]) });
//! let server = admin.bind(&AdminSettings::default()).await?;
//! println!("admin at http://{}", server.address());
//! # Ok(())
//! # }
//! ```

mod page;
mod pages;
mod server;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use antiphon_core::{BoxFuture, Health, Status};
use serde::{Deserialize, Serialize};

use crate::Telemetry;

pub use page::{Page, PageRequest};
pub use server::{AdminServer, BindError};

/// `[admin]`: the port for operators.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminSettings {
    /// Where it listens. What is there is not meant for everybody: keep it inside.
    pub listen: SocketAddr,
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 9_090).into() }
    }
}

type Handler = Arc<dyn Fn(PageRequest) -> BoxFuture<'static, Result<Page, Status>> + Send + Sync>;

/// The pages of the admin port, before it listens.
pub struct Admin {
    pages: BTreeMap<String, Entry>,
}

struct Entry {
    about: String,
    handler: Handler,
}

impl Admin {
    /// `/livez`, `/readyz` and `/metrics`, and an index of what is there.
    #[must_use]
    pub fn new(telemetry: Telemetry, health: Health) -> Self {
        let mut admin = Self { pages: BTreeMap::new() };
        pages::add(&mut admin, telemetry, health);
        admin
    }

    /// Adds a page, for its path and everything below it.
    ///
    /// `path` begins with a slash and has no other at its end; `about` is what the index says of it.
    /// A page that is added twice is the second one.
    pub fn page<F, R>(&mut self, path: &str, about: &str, handler: F) -> &mut Self
    where
        F: Fn(PageRequest) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Page, Status>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        self.pages.insert(path.to_owned(), Entry { about: about.to_owned(), handler });
        self
    }

    /// Shows the settings in force, under `/config`.
    pub fn config(&mut self, settings: &impl Serialize) -> &mut Self {
        let page = Page::json(settings);
        self.page("/config", "The settings in force, and where each comes from", move |_| {
            let page = page
                .as_ref()
                .map(Page::clone)
                .map_err(|_| Status::internal("the settings cannot be written as JSON"));
            std::future::ready(page)
        })
    }

    /// Begins to listen; calls are answered when the server runs.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn bind(self, settings: &AdminSettings) -> Result<AdminServer, BindError> {
        AdminServer::bind(settings.listen, Pages(Arc::new(self.pages))).await
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.pages.keys()).finish()
    }
}

/// The pages of a server.
#[derive(Clone)]
struct Pages(Arc<BTreeMap<String, Entry>>);

impl Pages {
    /// The page with the longest path that `path` is at or below, and what is left of the path.
    fn find<'a>(&self, path: &'a str) -> Option<(&Entry, &'a str)> {
        let mut end = path.trim_end_matches('/').len();
        loop {
            if let Some(entry) = self.0.get(&path[..end]) {
                return Some((entry, path[end..].trim_matches('/')));
            }
            end = path[..end].rfind('/')?;
        }
    }
}
