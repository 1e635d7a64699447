//! Calling services, over the network or in the same process.
//!
//! A [`Channel`] leads to one target and is shared by every generated client of it. The stack of a
//! call, outside in: span and metrics → deadline (the caller's, or the method's) → context into the
//! headers → pick an instance → connection → connectrpc's client. A call to a service of the same
//! process skips everything from the headers on, and encodes nothing.

mod channel;
mod connection;
mod local;
mod metrics;
mod remote;
mod target;

pub use channel::{Channel, Wire};
pub use local::local;
pub use remote::CallError;
pub use target::{InvalidTarget, Target};

use std::time::Duration;

use crate::service::Service;

/// A generated client.
pub trait Client: Sized {
    /// The full name of the service that it calls.
    const SERVICE: &'static str;
    /// A client that calls over `channel`.
    fn over(channel: Channel) -> Self;
}

/// A generated server, which can also be called from inside the process.
pub trait Hosted: Service {
    /// A channel to its handlers that encodes nothing.
    fn channel(&self) -> Channel;
}

/// Limits and timers of a [`Channel`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSettings {
    /// How long a connection may take to be made, all addresses of the instance together.
    pub connect_timeout: Duration,
    /// The time a call may take when neither the caller nor the contract says.
    pub timeout: Duration,
    /// How often an idle connection with open calls is asked whether it still lives.
    pub keep_alive_interval: Duration,
    /// How long the answer to that may take.
    pub keep_alive_timeout: Duration,
    /// How long looked-up addresses are used before they are looked up again.
    pub resolve_interval: Duration,
    /// The largest answer, in bytes.
    pub message_bytes_max: usize,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            keep_alive_interval: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(10),
            resolve_interval: Duration::from_secs(30),
            message_bytes_max: 4 * 1024 * 1024,
        }
    }
}
