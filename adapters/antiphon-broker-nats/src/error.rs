//! Why the broker cannot be opened, and what the server's refusals mean.

use antiphon_config::Mistake;
use antiphon_core::BoxError;
use antiphon_messaging::SubscribeError;

/// The broker cannot be used as it is set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The settings make no sense.
    #[error("NATS settings: {0}")]
    Settings(#[source] Mistake),
    /// Nobody answers.
    #[error("no NATS server answers at {url}; start it, or correct the address")]
    Unreachable {
        /// The address, without the password.
        url: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The server does not let us in.
    #[error(
        "the NATS server at {url} refuses these credentials; correct user, password, token or \
             credentials file"
    )]
    Credentials {
        /// The address, without the password.
        url: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// There is no trust in the server, or it has none in us.
    #[error(
        "no TLS with the NATS server at {url}; check ca_file against the server's certificate, \
             and that the server has TLS"
    )]
    Tls {
        /// The address, without the password.
        url: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The server cannot do what is needed.
    #[error("the NATS server at {url} is version {version}; at least 2.9.0 is needed")]
    TooOld {
        /// The address, without the password.
        url: String,
        /// The server's version.
        version: String,
    },
    /// The server has no JetStream, or this account may not use it.
    #[error(
        "the NATS server at {url} has no JetStream for this account; start it with -js, or \
             enable JetStream for the account"
    )]
    NoJetStream {
        /// The address, without the password.
        url: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The server answers, and not as it should.
    #[error("the NATS server at {url} does not do as asked: {action}")]
    Server {
        /// The address, without the password.
        url: String,
        /// What was attempted.
        action: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
}

impl OpenError {
    /// Whether waiting may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// A setting that cannot be.
pub(crate) fn setting(setting: &str, problem: impl Into<String>) -> OpenError {
    OpenError::Settings(Mistake::new(setting, problem))
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
        context: "there is no connection to the NATS server".to_owned(),
        transient: true,
        source: None,
    }
}
