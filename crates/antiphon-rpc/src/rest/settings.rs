//! The settings of REST.

use std::time::Duration;

/// What documents are called, timers of streams over REST, and who may open WebSockets. The defaults
/// are safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestSettings {
    /// The name of the whole, in its documents.
    pub title: String,
    /// Its version, in its documents.
    pub version: String,
    /// How often a comment goes over Server-Sent Events that have nothing to say.
    pub keep_alive: Duration,
    /// The origins (`https://shop.example`) whose pages may open WebSockets, besides the server's own.
    pub origins: Vec<String>,
    /// How often the client of a WebSocket is asked whether it lives.
    pub ping_interval: Duration,
    /// How long the client of a WebSocket may be silent; longer than `ping_interval`.
    pub socket_idle_timeout: Duration,
    /// How long a WebSocket may last.
    pub socket_age_max: Duration,
}

impl Default for RestSettings {
    fn default() -> Self {
        Self {
            title: "API".to_owned(),
            version: "1".to_owned(),
            keep_alive: Duration::from_secs(15),
            origins: Vec::new(),
            ping_interval: Duration::from_secs(30),
            socket_idle_timeout: Duration::from_secs(75),
            socket_age_max: Duration::from_secs(24 * 3_600),
        }
    }
}
