//! What went wrong, by what the caller can do about it.
//!
//! MySQL and MariaDB share their old error numbers; where they have different ones for the same
//! thing, both are here. The decisions are pure and tested by tables.

use antiphon_core::BoxError;
use antiphon_outbox::{CommitError, StoreError};
use sqlx::mysql::MySqlDatabaseError;

/// Why a database was not opened.
///
/// `database` is the URL without the password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The URL is not one of a MySQL database.
    #[error("cannot use {database} as a MySQL or MariaDB database: {problem}")]
    Location {
        /// As given, without the password.
        database: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Nobody answers there.
    #[error("no MySQL or MariaDB server answers at {database}: {source}; is it running there?")]
    Unreachable {
        /// Where.
        database: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The server refuses the user or the password, or the user may not do this.
    #[error(
        "the server at {database} refuses user {user:?}: {source}; check the user's password and grants"
    )]
    Credentials {
        /// Where.
        database: String,
        /// The user.
        user: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// No trusted connection was made.
    #[error(
        "no trusted TLS connection to {database}: {source}; check `ca_file`, the certificate's names and that \
         the server offers TLS"
    )]
    Tls {
        /// Where.
        database: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The server is too old, or set up in a way in which promises would be broken.
    #[error("the server at {database} cannot be used: {problem}")]
    Unfit {
        /// Where.
        database: String,
        /// What is wrong, and what to change.
        problem: String,
    },
    /// A newer version of this program has migrated the database.
    #[error(
        "{database} was migrated by a newer version of this program ({component} {found}; this one knows \
         {known}); start the newer version"
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
        "migration {name:?} of {service} was changed after it had been applied to {database}; restore it \
         and add a new migration instead"
    )]
    Changed {
        /// Which database.
        database: String,
        /// Whose migration.
        service: String,
        /// Which migration.
        name: String,
    },
    /// A statement of a migration failed. The statements before it stay applied, since the server
    /// commits each change of a table at once; the next start goes on with the one that failed.
    #[error(
        "statement {statement} of migration {name:?} of {service} failed on {database}: {source}; those \
         before it stay applied; mend it and start again"
    )]
    Migration {
        /// Which database.
        database: String,
        /// Whose migration.
        service: String,
        /// Which migration.
        name: String,
        /// Which of its statements, from 1.
        statement: usize,
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

/// What an error means for what is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Another transaction is in the way; the whole of this one may be tried again.
    Conflict,
    /// A row with this key is there already.
    Duplicate,
    /// The server ended the connection, and said so.
    Ended,
    /// The connection broke, and what it was asked last may have been done.
    Broken,
    /// The user or the password is refused, or lacks a grant.
    Refused,
    /// The database is not there.
    NoDatabase,
    /// No trusted connection.
    Tls,
    /// What a migration makes is there already, or what it removes is gone.
    AlreadyDone,
    /// There is no such table.
    NoTable,
    /// There is no such savepoint: the transaction that had it was ended.
    NoSavepoint,
    /// A null where none may be; our own statements use it to refuse what has changed meanwhile.
    Null,
    /// Anything else.
    Other,
}

/// What an error number of the server means.
/// <https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html>,
/// <https://mariadb.com/kb/en/mariadb-error-code-reference/>
pub(crate) const fn trouble_of_number(number: u16) -> Trouble {
    match number {
        // Lock wait timeout; deadlock; record changed since last read; NOWAIT; Galera or group
        // replication in the way.
        1205 | 1213 | 1020 | 3572 | 3101 | 1614 => Trouble::Conflict,
        1022 | 1062 | 1169 | 1586 => Trouble::Duplicate,
        // Shutdown, killed, idle for too long, packet trouble, too many connections.
        1053 | 1077 | 1079 | 1080 | 1152 | 1153 | 1158..=1161 | 1184 | 1927 | 4031 => {
            Trouble::Ended
        }
        1044 | 1045 | 1142 | 1143 | 1227 | 1370 | 1698 | 1820 | 1862 | 4151 => Trouble::Refused,
        1049 => Trouble::NoDatabase,
        3159 => Trouble::Tls,
        // Database, table, column, key, trigger, routine exist; cannot drop; duplicate foreign key.
        1007 | 1050 | 1051 | 1060 | 1061 | 1091 | 1304 | 1359 | 1360 | 1826 => Trouble::AlreadyDone,
        1146 => Trouble::NoTable,
        1305 => Trouble::NoSavepoint,
        1048 => Trouble::Null,
        _ => Trouble::Other,
    }
}

/// What an error of the driver means.
pub(crate) fn trouble(error: &sqlx::Error) -> Trouble {
    match error {
        sqlx::Error::Database(source) => source
            .try_downcast_ref::<MySqlDatabaseError>()
            .map_or(Trouble::Other, |error| trouble_of_number(error.number())),
        // Without TLS the driver cannot give the password in the way of MySQL 8 (caching_sha2_password):
        // it calls that a matter of configuration.
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => Trouble::Tls,
        // How rustls reports a certificate that it does not trust.
        sqlx::Error::Io(source) if source.kind() == std::io::ErrorKind::InvalidData => Trouble::Tls,
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => Trouble::Broken,
        _ => Trouble::Other,
    }
}

/// How far a commit came that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A statement before COMMIT was answered with the error, so COMMIT was not run.
    Before,
    /// COMMIT was.
    Commit,
}

/// What a failed commit means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Busy,
    RolledBack,
    Unknown,
}

/// What a failed commit means. A connection that breaks tells nothing, wherever its last answer
/// came from; an answer of the server to an earlier statement tells that COMMIT was not run.
pub(crate) const fn verdict(trouble: Trouble, stage: Stage) -> Verdict {
    match (trouble, stage) {
        (Trouble::Broken | Trouble::Tls, _) => Verdict::Unknown,
        (Trouble::Conflict | Trouble::Duplicate, _) | (Trouble::Null, Stage::Before) => {
            Verdict::Busy
        }
        (_, Stage::Before) => Verdict::RolledBack,
        (_, Stage::Commit) => Verdict::Unknown,
    }
}

/// The error of a failed commit, for the ports.
pub(crate) fn commit_error(error: sqlx::Error, stage: Stage) -> CommitError {
    match verdict(trouble(&error), stage) {
        Verdict::Busy => CommitError::RolledBack(StoreError::Busy(error.into())),
        Verdict::RolledBack if trouble(&error) == Trouble::NoSavepoint => {
            let source = "the transaction was ended before its commit: by a deadlock whose error \
                          was ignored, or by a statement that commits by itself";
            CommitError::RolledBack(StoreError::Failed { action: "commit", source: source.into() })
        }
        Verdict::RolledBack => CommitError::RolledBack(store_error("commit")(error)),
        Verdict::Unknown => CommitError::Unknown(error.into()),
    }
}

/// The error of an attempted statement, for the ports.
pub(crate) fn store_error(action: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |error| match trouble(&error) {
        Trouble::Conflict => StoreError::Busy(error.into()),
        _ => StoreError::Failed { action, source: error.into() },
    }
}

/// The error of an attempt to open the database at `database` as `user`.
pub(crate) fn open_error(database: &str, user: &str, error: sqlx::Error) -> OpenError {
    let database = database.to_owned();
    match trouble(&error) {
        Trouble::Refused => {
            OpenError::Credentials { database, user: user.to_owned(), source: error.into() }
        }
        Trouble::Tls => OpenError::Tls { database, source: error.into() },
        Trouble::Broken | Trouble::Ended => {
            OpenError::Unreachable { database, source: error.into() }
        }
        _ => OpenError::Failed { database, source: error.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_mean_the_same_on_both_servers() {
        for (number, expected) in [
            (1205, Trouble::Conflict),
            (1213, Trouble::Conflict),
            (1062, Trouble::Duplicate),
            (1927, Trouble::Ended),
            (4031, Trouble::Ended),
            (1045, Trouble::Refused),
            (1698, Trouble::Refused),
            (1049, Trouble::NoDatabase),
            (1050, Trouble::AlreadyDone),
            (1305, Trouble::NoSavepoint),
            (1064, Trouble::Other),
            (1180, Trouble::Other),
        ] {
            assert_eq!(trouble_of_number(number), expected, "{number}");
        }
    }

    #[test]
    fn a_commit_is_rolled_back_only_when_that_is_certain() {
        for (trouble, stage, expected) in [
            (Trouble::Conflict, Stage::Before, Verdict::Busy),
            (Trouble::Conflict, Stage::Commit, Verdict::Busy),
            (Trouble::Duplicate, Stage::Before, Verdict::Busy),
            (Trouble::Null, Stage::Before, Verdict::Busy),
            (Trouble::NoSavepoint, Stage::Before, Verdict::RolledBack),
            (Trouble::Other, Stage::Before, Verdict::RolledBack),
            (Trouble::Ended, Stage::Before, Verdict::RolledBack),
            (Trouble::Ended, Stage::Commit, Verdict::Unknown),
            (Trouble::Other, Stage::Commit, Verdict::Unknown),
            (Trouble::Broken, Stage::Before, Verdict::Unknown),
            (Trouble::Broken, Stage::Commit, Verdict::Unknown),
        ] {
            assert_eq!(verdict(trouble, stage), expected, "{trouble:?} {stage:?}");
        }
    }

    #[test]
    fn a_broken_connection_is_told_from_an_answer() {
        let io = |kind| sqlx::Error::Io(std::io::Error::new(kind, "x"));
        assert_eq!(trouble(&io(std::io::ErrorKind::ConnectionReset)), Trouble::Broken);
        assert_eq!(trouble(&io(std::io::ErrorKind::InvalidData)), Trouble::Tls);
        assert_eq!(trouble(&sqlx::Error::PoolTimedOut), Trouble::Other);
    }
}
