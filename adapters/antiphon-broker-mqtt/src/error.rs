//! What can go wrong with a connection, by what has to be done about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::settings::SettingsError;

/// Why the broker cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A setting cannot be.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A file of certificates or keys cannot be used.
    #[error("{}: {problem}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Nobody answers there.
    #[error("no MQTT server answers at {address}; start it, or correct broker.url")]
    Unreachable {
        /// Where.
        address: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("{address} did not answer within {within:?}; is it an MQTT server?")]
    Silent {
        /// Where.
        address: String,
        /// How long it had.
        within: Duration,
    },
    /// No encrypted connection comes about.
    #[error(
        "no TLS connection to {address}; check broker.mqtt.ca_file and the server's certificate"
    )]
    Tls {
        /// Where.
        address: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// User or password are wrong.
    #[error(
        "{address} does not know this user and password; correct broker.url or broker.mqtt.user"
    )]
    Credentials {
        /// Where.
        address: String,
    },
    /// The user may not do this.
    #[error("{address} does not allow {action}; change the access rights of this user")]
    Forbidden {
        /// Where.
        address: String,
        /// What was attempted.
        action: String,
    },
    /// The server is too old.
    #[error("{address} does not speak MQTT 5; use Mosquitto 2 or another server that does")]
    Version {
        /// Where.
        address: String,
    },
    /// The server cannot do what is needed.
    #[error("{address} {problem}")]
    TooLittle {
        /// Where.
        address: String,
        /// What it cannot do, and what to change.
        problem: String,
    },
    /// The server refuses for now.
    #[error("{address} refuses the connection: {reason}")]
    Refused {
        /// Where.
        address: String,
        /// The server's words.
        reason: String,
    },
    /// The connection ended while it was set up.
    #[error("the connection to {address} ended: {reason}")]
    Ended {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
}

impl OpenError {
    /// Whether trying again may help.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Silent { .. }
                | Self::Refused { .. }
                | Self::Ended { .. }
        )
    }
}

/// Why a connection that stood has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// We wanted it.
    Closed,
    /// Another connection came with the same client id.
    TakenOver,
    /// Anything else, in words.
    Lost(String),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("it was closed"),
            Self::TakenOver => f.write_str("another connection took over its session"),
            Self::Lost(why) => f.write_str(why),
        }
    }
}
