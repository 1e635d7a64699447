//! What can go wrong, by what has to be done about it.

use std::path::PathBuf;

use antiphon_messaging::{PublishError, PublishErrorKind, Sent, SubscribeError};
use lapin::ErrorKind;

use crate::settings::SettingsError;

/// Why the server cannot be used.
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
    #[error("no RabbitMQ at {address}: {problem}; is it running, and is the port right?")]
    Unreachable {
        /// Host and port.
        address: String,
        /// What happened.
        problem: String,
    },
    /// The TLS handshake failed.
    #[error(
        "no TLS with {address}: {problem}; check broker.rabbitmq.ca_file, the host's name and the port"
    )]
    Tls {
        /// Host and port.
        address: String,
        /// What happened.
        problem: String,
    },
    /// Something else answers there.
    #[error("{address} is not RabbitMQ: {found}")]
    NotRabbitmq {
        /// Host and port.
        address: String,
        /// What it said.
        found: String,
    },
    /// The server lacks what this needs.
    #[error("RabbitMQ {found} at {address} is too old; {needed} or newer has quorum queues")]
    TooOld {
        /// Host and port.
        address: String,
        /// Its version.
        found: String,
        /// The oldest that will do.
        needed: &'static str,
    },
    /// The server does not know the user, or not with this password.
    #[error(
        "RabbitMQ at {address} refuses user `{user}`: correct broker.url or broker.rabbitmq.user"
    )]
    Credentials {
        /// Host and port.
        address: String,
        /// Who came.
        user: String,
    },
    /// The virtual host is not there, or not for this user.
    #[error("virtual host `{name}` at {address}: {problem}; create it or grant the user access")]
    VirtualHost {
        /// Host and port.
        address: String,
        /// Its name.
        name: String,
        /// What the server says.
        problem: String,
    },
    /// The server or the connection refused for another reason.
    #[error("RabbitMQ at {address}: {problem}")]
    Refused {
        /// Host and port.
        address: String,
        /// What it says.
        problem: String,
    },
}

/// What an error of the client library says, as far as anybody acts on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// 404: what was named does not exist.
    NotFound(String),
    /// 406: it exists with other settings, or something else does not fit.
    Precondition(String),
    /// 403: not allowed.
    Denied(String),
    /// 405: somebody else has it for themselves.
    Locked(String),
    /// 530: the virtual host is not there, or not for this user.
    NotAllowed(String),
    /// The connection or channel is gone.
    Gone(String),
}

impl Fault {
    pub(crate) fn of(error: &lapin::Error) -> Self {
        let ErrorKind::ProtocolError(said) = error.kind() else {
            return Self::Gone(error.to_string());
        };
        let text = said.get_message().to_string();
        match said.get_id() {
            403 => Self::Denied(text),
            404 => Self::NotFound(text),
            405 => Self::Locked(text),
            406 => Self::Precondition(text),
            530 => Self::NotAllowed(text),
            _ => Self::Gone(text),
        }
    }

    pub(crate) fn text(&self) -> &str {
        match self {
            Self::NotFound(text)
            | Self::Precondition(text)
            | Self::Denied(text)
            | Self::Locked(text)
            | Self::NotAllowed(text)
            | Self::Gone(text) => text,
        }
    }

    /// Whether waiting may help.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Gone(_) | Self::Locked(_))
    }

    /// Whether the server speaks of an exchange or queue of this name.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.text().contains(&format!("'{name}'"))
    }

    /// The server's limit, when it says that a message is above it.
    pub(crate) fn size_limit(&self) -> Option<usize> {
        let Self::Precondition(text) = self else { return None };
        if !text.contains("message size") {
            return None;
        }
        let digits = text.rsplit(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty())?;
        digits.parse().ok()
    }
}

/// Why a topology or a subscription was refused.
pub(crate) fn refused(what: &str, fault: &Fault) -> SubscribeError {
    let context = match fault {
        Fault::Precondition(text) => {
            format!("{what} exists with other settings ({text}); delete it or restore its settings")
        }
        Fault::Denied(text) => {
            format!("{what} is not allowed ({text}); grant the user configure, write and read")
        }
        Fault::NotFound(text) => format!("{what} does not exist ({text}); declare it first"),
        other => format!("{what}: {}", other.text()),
    };
    SubscribeError { context, transient: fault.is_transient(), source: None }
}

/// The connection is away.
pub(crate) fn away(what: &str, why: &str) -> SubscribeError {
    SubscribeError { context: format!("{what}: {why}"), transient: true, source: None }
}

/// A message was not taken.
pub(crate) fn not_taken(
    topic: &str,
    kind: PublishErrorKind,
    sent: Sent,
    why: impl Into<String>,
) -> PublishError {
    PublishError { topic: topic.to_owned(), kind, sent, source: Some(why.into().into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_limit_is_read_from_its_refusal() {
        let said =
            "PRECONDITION_FAILED - message size 2000 is larger than configured max size 1000";
        assert_eq!(Fault::Precondition(said.to_owned()).size_limit(), Some(1_000));
        assert_eq!(Fault::Precondition("inequivalent arg".to_owned()).size_limit(), None);
        assert_eq!(Fault::NotFound(said.to_owned()).size_limit(), None);
    }

    #[test]
    fn a_fault_speaks_of_what_it_quotes() {
        let fault = Fault::NotFound("NOT_FOUND - no exchange 'orders' in vhost '/'".to_owned());
        assert!(fault.names("orders") && !fault.names("order"));
        let refused = refused("topic orders", &fault);
        assert!(refused.to_string().contains("declare it first") && !refused.transient);
    }
}
