//! What went wrong, by what the caller can do about it.

use antiphon_core::BoxError;
use antiphon_outbox::{CommitError, StoreError};
use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// Why a database was not opened. Nothing was changed in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The location is not one of a database.
    #[error("cannot use {location:?} as a PostgreSQL database: {problem}")]
    Location {
        /// As given, without the password.
        location: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Nobody answers there.
    #[error(
        "cannot reach {database}: {source}; is the server running, and are host and port right?"
    )]
    Unreachable {
        /// Which database.
        database: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The connection could not be secured.
    #[error(
        "cannot agree with {database} on how to encrypt: {source}; check the certificate \
         authority and the `sslmode` of the URL (without one, no TLS to this machine)"
    )]
    Tls {
        /// Which database.
        database: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The server refuses the user, or what it needs to do.
    #[error(
        "{database} refuses: {source}; check user and password, and that the role may use and \
         create what it needs"
    )]
    Permission {
        /// Which database.
        database: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The server or the database is not fit.
    #[error("cannot use {database}: {problem}")]
    Unfit {
        /// Which database.
        database: String,
        /// Why, and what would do.
        problem: String,
    },
    /// A newer version of this program has migrated the database.
    #[error(
        "{database} was migrated by a newer version of this program ({component} {found}; this \
         one knows {known}); start the newer version"
    )]
    Newer {
        /// Which database.
        database: String,
        /// Which part of the schema.
        component: String,
        /// What the database says.
        found: String,
        /// What this program knows.
        known: String,
    },
    /// A migration that was applied has another text by now.
    #[error(
        "migration {name:?} of {service} was changed after it had been applied to {database}; \
         restore it and add a new migration instead"
    )]
    Changed {
        /// Which database.
        database: String,
        /// Whose migration.
        service: String,
        /// Which migration.
        name: String,
    },
    /// A migration failed and was undone.
    #[error("migration {name:?} of {service} failed on {database}: {source}")]
    Migration {
        /// Which database.
        database: String,
        /// Whose migration.
        service: String,
        /// Which migration.
        name: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// Anything else.
    #[error("cannot open {database}: {source}")]
    Failed {
        /// Which database.
        database: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
}

/// What a SQLSTATE means for what is done next
/// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Another transaction is in the way, or there are too many at once: the whole transaction may
    /// be tried again.
    Busy,
    /// There is a row with this key already.
    Taken,
    /// The connection has ended, or the server is about to.
    Gone,
    /// User, password or rights do not suffice.
    Denied,
    /// There is no such database.
    NoDatabase,
    /// There is no such table.
    NoTable,
    /// There is such a thing already: somebody else was faster.
    Exists,
    /// Anything else.
    Other,
}

impl State {
    pub(crate) fn of(code: &str) -> Self {
        match code {
            // Serialization failure, deadlock, lock timeout, object in use, too many connections.
            "40001" | "40P01" | "55P03" | "55006" | "53300" => Self::Busy,
            "23505" => Self::Taken,
            // Idle in transaction for too long; shutdown, crash, starting up, idle for too long.
            "25P03" | "57P01" | "57P02" | "57P03" | "57P05" => Self::Gone,
            "42501" => Self::Denied,
            "3D000" => Self::NoDatabase,
            "42P01" => Self::NoTable,
            "42P04" | "42P06" | "42P07" | "42710" => Self::Exists,
            _ if code.starts_with("08") => Self::Gone,
            _ if code.starts_with("28") => Self::Denied,
            _ => Self::Other,
        }
    }
}

/// The error of the server, if it is one.
pub(crate) fn of_server(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

pub(crate) fn state(error: &sqlx::Error) -> State {
    match error {
        sqlx::Error::PoolTimedOut => State::Busy,
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolClosed => State::Gone,
        _ => of_server(error).map_or(State::Other, |error| State::of(error.code())),
    }
}

/// The error of an attempted statement, for the ports.
pub(crate) fn store_error(action: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |error| {
        if state(&error) == State::Busy || is_overtaken(&error) {
            StoreError::Busy(error.into())
        } else {
            StoreError::Failed { action, source: error.into() }
        }
    }
}

/// Whether a statement of the framework found that another transaction was faster: a saga of
/// another revision, an answer that is stored already.
fn is_overtaken(error: &sqlx::Error) -> bool {
    of_server(error).is_some_and(|error| match (error.code(), error.table()) {
        ("23502", Some("antiphon_saga")) => error.column() == Some("revision"),
        ("23505", Some("antiphon_call")) => true,
        _ => false,
    })
}

/// What a failed COMMIT means.
///
/// The server said ERROR: it has undone the transaction, for nothing that happens after the commit
/// record is written can be more than a warning. It said FATAL, or nothing: nobody knows; but a
/// transaction that was ended for being idle had not got the COMMIT yet.
pub(crate) fn commit_error(error: sqlx::Error) -> CommitError {
    match of_server(&error).map(|error| (error.severity(), error.code())) {
        // COMMIT outside of a transaction: a statement of the user has ended it.
        Some((_, "25P01")) => CommitError::Unknown(error.into()),
        Some((PgSeverity::Error, _) | (_, "25P03")) => {
            CommitError::RolledBack(store_error("commit")(error))
        }
        _ => CommitError::Unknown(error.into()),
    }
}

/// The error of an attempt to open `database`.
pub(crate) fn open_error(database: &str, source: sqlx::Error) -> OpenError {
    let database = database.to_owned();
    let denied = state(&source) == State::Denied;
    match source {
        sqlx::Error::Tls(source) => OpenError::Tls { database, source },
        sqlx::Error::Io(source) if is_tls(&source) => {
            OpenError::Tls { database, source: source.into() }
        }
        sqlx::Error::Io(source) => OpenError::Unreachable { database, source: source.into() },
        sqlx::Error::Configuration(source) => {
            OpenError::Unfit { database, problem: source.to_string() }
        }
        source if demands_tls(&source) => OpenError::Tls { database, source: source.into() },
        source if denied => OpenError::Permission { database, source: source.into() },
        source => OpenError::Failed { database, source: source.into() },
    }
}

/// Whether `pg_hba.conf` has lines for such a client, but only with TLS.
fn demands_tls(error: &sqlx::Error) -> bool {
    let refused = of_server(error).filter(|error| error.code() == "28000");
    refused.is_some_and(|error| error.message().ends_with("no encryption"))
}

/// The TLS library reports what it does not like in the peer as invalid data.
fn is_tls(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::InvalidData
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sqlstate_that_decides_something_is_known() {
        for (code, expected) in [
            ("40001", State::Busy),
            ("40P01", State::Busy),
            ("55P03", State::Busy),
            ("55006", State::Busy),
            ("53300", State::Busy),
            ("23505", State::Taken),
            ("25P03", State::Gone),
            ("57P01", State::Gone),
            ("57P02", State::Gone),
            ("57P03", State::Gone),
            ("08006", State::Gone),
            ("08P01", State::Gone),
            ("28P01", State::Denied),
            ("28000", State::Denied),
            ("42501", State::Denied),
            ("3D000", State::NoDatabase),
            ("42P01", State::NoTable),
            ("42P04", State::Exists),
            ("42P07", State::Exists),
            // A cancelled statement, a full disk, a failed transaction, a syntax error.
            ("57014", State::Other),
            ("53100", State::Other),
            ("25P02", State::Other),
            ("42601", State::Other),
            ("", State::Other),
        ] {
            assert_eq!(State::of(code), expected, "{code}");
        }
    }

    #[test]
    fn what_the_server_did_not_say_leaves_the_outcome_open() {
        let cut = || sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        assert!(matches!(commit_error(cut()), CommitError::Unknown(_)));
        assert!(matches!(commit_error(sqlx::Error::PoolClosed), CommitError::Unknown(_)));
        assert!(store_error("x")(sqlx::Error::PoolTimedOut).is_busy());
        assert!(!store_error("x")(cut()).is_busy());
    }
}
