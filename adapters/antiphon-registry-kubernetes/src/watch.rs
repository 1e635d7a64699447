//! The slices of one Service: a list, and what happens after it.

use std::collections::BTreeMap;

use antiphon_core::{BoxError, BoxFuture};
use antiphon_discovery::{Answers, Instance, RegistryError};
use antiphon_registry_http::Lines;
use serde::Deserialize;
use tokio::time::{Duration, Instant, sleep_until, timeout};

use crate::api::Api;
use crate::slices::{Port, Slice, instances};

/// The version that is asked for is too old.
const GONE: u16 = 410;
/// The least time between two watches: a server, or somebody before it, that ends each watch at once must
/// not be asked in a circle. What happens in between is told by the next.
const WATCH_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// One line of a watch.
#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: serde_json::Value,
}

/// What the server says when it cannot go on, in an answer whose own status is 200.
#[derive(Debug, Default, Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

/// What a line means.
#[derive(Debug)]
enum Heard {
    /// Something that callers may want to know.
    Changed,
    /// Nothing has changed.
    Nothing,
}

/// The slices of one Service.
pub(crate) struct Slices {
    api: Api,
    name: Name,
    slices: BTreeMap<String, Slice>,
    /// As of which version; without it everything is listed first.
    version: Option<String>,
    watch: Option<Lines>,
    /// When the next watch may begin.
    not_before: Instant,
}

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) namespace: String,
    pub(crate) service: String,
    pub(crate) port: Port,
}

impl Slices {
    pub(crate) fn new(api: Api, name: Name) -> Self {
        let not_before = Instant::now();
        Self { api, name, slices: BTreeMap::new(), version: None, watch: None, not_before }
    }

    async fn answer(&mut self) -> Result<Vec<Instance>, RegistryError> {
        let done = match self.version {
            None => self.list().await,
            Some(_) => self.follow().await,
        };
        if done.is_err() {
            self.forget();
        }
        done.map(|()| instances(self.slices.values(), &self.name.port))
    }

    async fn list(&mut self) -> Result<(), RegistryError> {
        let list = self.api.list(&self.name.namespace, &self.name.service).await?;
        let named = |slice: Slice| (slice.metadata.name.clone(), slice);
        self.slices = list.items.into_iter().map(named).collect();
        self.watch = None;
        self.version = Some(list.metadata.resource_version);
        Ok(())
    }

    /// Waits until something changes.
    async fn follow(&mut self) -> Result<(), RegistryError> {
        // The server ends a watch when its time is over; one that is silent for a quarter longer is
        // not connected to anybody any more.
        let silence = self.api.settings().watch_timeout.0 * 5 / 4;
        loop {
            let Some(version) = self.version.clone() else { return self.list().await };
            let Some(watch) = &mut self.watch else {
                sleep_until(self.not_before).await;
                self.not_before = Instant::now() + WATCH_INTERVAL_MIN;
                let Name { namespace, service, .. } = &self.name;
                self.watch = Some(self.api.watch(namespace, service, &version).await?);
                continue;
            };
            let line = timeout(silence, watch.next()).await.map_err(|_| {
                RegistryError::silent(format!("a watch at Kubernetes said nothing for {silence:?}"))
            })?;
            match line.map_err(cut)? {
                // Its time is over; the next one continues it.
                None => self.watch = None,
                Some(line) => match self.hear(&line)? {
                    Heard::Changed => return Ok(()),
                    Heard::Nothing => {}
                },
            }
        }
    }

    fn hear(&mut self, line: &[u8]) -> Result<Heard, RegistryError> {
        let unreadable = |error: serde_json::Error| {
            RegistryError::refused("what Kubernetes says is not understood", error)
        };
        let Event { kind, object } = serde_json::from_slice(line).map_err(unreadable)?;
        if kind == "ERROR" {
            let status: Status = serde_json::from_value(object).unwrap_or_default();
            if status.code == GONE {
                // Not a failure: the history is shorter than the pause was. Everything is listed anew.
                self.forget();
                return Ok(Heard::Nothing);
            }
            return Err(RegistryError::silent(format!(
                "a watch at Kubernetes is over: {} {}",
                status.code, status.message
            )));
        }
        let slice: Slice = serde_json::from_value(object).map_err(unreadable)?;
        self.version = Some(slice.metadata.resource_version.clone());
        match kind.as_str() {
            "ADDED" | "MODIFIED" => self.slices.insert(slice.metadata.name.clone(), slice),
            "DELETED" => self.slices.remove(&slice.metadata.name),
            // A bookmark says how far the watch is.
            _ => return Ok(Heard::Nothing),
        };
        Ok(Heard::Changed)
    }

    fn forget(&mut self) {
        self.version = None;
        self.watch = None;
    }
}

impl Answers for Slices {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, RegistryError>> {
        Box::pin(self.answer())
    }

    fn look_again(&mut self) {
        self.forget();
    }
}

fn cut(error: BoxError) -> RegistryError {
    RegistryError::away("a watch at Kubernetes was cut", error)
}
