//! Real servers for tests and development: how each is started, found and stopped.
//!
//! One description per server ([`server`]) says what it needs, how it is prepared, started and asked
//! whether it is ready. An [`Instance`] is a server with a folder and ports of its own; `cargo xtask
//! services` keeps one of each on known ports ([`Service::url`]), and a test that wants to restart,
//! stop, pause or fill a server starts one for itself ([`Private`]).
//!
//! Everything here blocks and knows neither the framework nor an async runtime, so that `xtask` stays
//! small. `antiphon_testing::services` has the same for async tests. Servers listen on loopback only.

mod instance;
mod place;
mod private;
mod processes;
pub mod server;
mod service;
mod tls;
mod wire;
mod zone;

use std::fmt;

pub use instance::{Instance, Ports, Started, State};
pub use place::folder;
pub use private::{Private, sweep};
pub use processes::memory;
pub use service::{PASSWORD, Service, USER, certificate_authority};
pub use tls::certificates;
pub use zone::{Records, Zone};

/// Why a server cannot be had, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble(String);

impl Trouble {
    /// Trouble, told in one sentence that ends with the next step.
    pub fn new(words: impl Into<String>) -> Self {
        Self(words.into())
    }

    /// What could not be done with which file.
    fn file(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self(format!("{}: {error}", path.display()))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Trouble {}
