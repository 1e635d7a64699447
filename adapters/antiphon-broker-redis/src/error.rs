//! Why the broker cannot be opened, and what the server's errors mean.

use antiphon_config::Mistake;
use antiphon_core::BoxError;
use antiphon_messaging::{PublishErrorKind, Sent, SubscribeError};
use antiphon_redis_client::StartError;
use redis::RedisError;

/// The broker cannot be used as it is set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The settings make no sense.
    #[error("Redis settings: {0}")]
    Settings(#[source] Mistake),
    /// Nobody answers.
    #[error("no Redis server answers at {url}; start it, or correct the address")]
    Unreachable {
        /// The address, without the password.
        url: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The server does not let us in.
    #[error("the Redis server at {url} refuses these credentials; correct user and password")]
    Credentials {
        /// The address, without the password.
        url: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// There is no trust in the server, or it has none in us.
    #[error(
        "no TLS with the Redis server at {url}; check ca_file against the server's \
             certificate, and that this port speaks TLS"
    )]
    Tls {
        /// The address, without the password.
        url: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The server cannot do what is needed.
    #[error("the Redis server at {url} is version {version}; at least 7.0 is needed")]
    TooOld {
        /// The address, without the password.
        url: String,
        /// The server's version.
        version: String,
    },
    /// The server takes no writes.
    #[error("the Redis server at {url} is a replica; connect to the primary")]
    Replica {
        /// The address, without the password.
        url: String,
    },
    /// The server forgets messages when its memory is full.
    #[error(
        "the Redis server at {url} has maxmemory-policy {policy}, which throws messages away; \
             set it to noeviction"
    )]
    Evicts {
        /// The address, without the password.
        url: String,
        /// The policy.
        policy: String,
    },
    /// The server answers, and not as it should.
    #[error("the Redis server at {url} does not do as asked")]
    Server {
        /// The address, without the password.
        url: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
}

impl From<StartError> for OpenError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Settings(mistake) => Self::Settings(mistake),
            StartError::Tls { url, source } => Self::Tls { url, source },
        }
    }
}

impl OpenError {
    /// Whether waiting may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Replica { .. })
    }
}

/// What it means that connecting failed.
pub(crate) fn refusal(url: &str, error: RedisError) -> OpenError {
    let url = url.to_owned();
    let text = format!("{error} {}", error.detail().unwrap_or_default()).to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    match error.kind() {
        redis::ErrorKind::InvalidClientConfig => {
            OpenError::Settings(Mistake::new("url", error.to_string()))
        }
        redis::ErrorKind::AuthenticationFailed => {
            OpenError::Credentials { url, source: error.into() }
        }
        _ if says(&["wrongpass", "noauth", "noperm", "authentication", "invalid username"]) => {
            OpenError::Credentials { url, source: error.into() }
        }
        // What is no record of TLS is no TLS.
        _ if says(&[
            "certificate",
            "tls",
            "handshake",
            "invalidcontenttype",
            "corrupt message",
        ]) =>
        {
            OpenError::Tls { url, source: error.into() }
        }
        redis::ErrorKind::Server(redis::ServerErrorKind::BusyLoading) => {
            OpenError::Unreachable { url, source: error.into() }
        }
        redis::ErrorKind::Server(_) => OpenError::Server { url, source: error.into() },
        _ => OpenError::Unreachable { url, source: error.into() },
    }
}

/// What the code of an error says of a message that was sent.
pub(crate) fn meaning(code: &str) -> (PublishErrorKind, Sent) {
    match code {
        // Out of memory; cannot write to the disk; too few replicas.
        "OOM" | "MISCONF" | "NOREPLICAS" | "BUSY" => (PublishErrorKind::Overloaded, Sent::No),
        // Starting up; not the primary any more.
        "LOADING" | "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" => {
            (PublishErrorKind::Disconnected, Sent::No)
        }
        "NOPERM" | "NOAUTH" | "WRONGPASS" => (PublishErrorKind::Unauthorized, Sent::No),
        // The key is something else than a stream.
        "WRONGTYPE" => (PublishErrorKind::Unroutable, Sent::No),
        _ => (PublishErrorKind::Overloaded, Sent::Maybe),
    }
}

/// A refusal that will not change by itself.
pub(crate) fn refused(context: impl Into<String>) -> SubscribeError {
    SubscribeError { context: context.into(), transient: false, source: None }
}

/// Trouble that may pass.
pub(crate) fn trouble(context: impl Into<String>, source: impl Into<BoxError>) -> SubscribeError {
    SubscribeError { context: context.into(), transient: true, source: Some(source.into()) }
}

/// The connection is away.
pub(crate) fn away() -> SubscribeError {
    SubscribeError {
        context: "there is no connection to the Redis server".to_owned(),
        transient: true,
        source: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_whether_a_message_may_be_there() {
        for (code, kind, sent) in [
            ("OOM", PublishErrorKind::Overloaded, Sent::No),
            ("LOADING", PublishErrorKind::Disconnected, Sent::No),
            ("READONLY", PublishErrorKind::Disconnected, Sent::No),
            ("NOPERM", PublishErrorKind::Unauthorized, Sent::No),
            ("ODD", PublishErrorKind::Overloaded, Sent::Maybe),
        ] {
            assert_eq!(meaning(code), (kind, sent), "{code}");
        }
    }
}
