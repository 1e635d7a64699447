//! Why a server cannot be used as it is set up.

use antiphon_config::Mistake;
use antiphon_core::BoxError;

/// The server cannot be used as it is set up. That it is away is no such reason.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings make no sense.
    #[error("Redis settings: {0}")]
    Settings(#[source] Mistake),
    /// The certificates cannot be used.
    #[error("no TLS with the Redis server at {url}; check ca_file, certificate_file and key_file")]
    Tls {
        /// The address, without the password.
        url: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
}
