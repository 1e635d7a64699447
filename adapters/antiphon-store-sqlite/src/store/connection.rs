//! The open transaction that user code runs its statements on.

use std::ops::{Deref, DerefMut};

use antiphon_outbox::{CommitError, StoreError};
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, Encode, Sqlite, SqliteConnection, Type};

use super::writer::Turn;
use crate::error::{code, is_busy, primary_code, store_error};

/// An open transaction: a `sqlx` connection that commits with [`SqliteStore`](crate::SqliteStore)'s
/// `commit` and otherwise rolls back. Savepoints (`sqlx::Connection::begin`) nest in it.
#[derive(Debug)]
pub struct Connection {
    turn: Turn,
    deferred: Deferred,
}

/// Statements of the framework that go with COMMIT.
///
/// Each statement that is awaited costs a switch to the driver's thread and back, as much as the
/// statement itself; several in one text cost one switch.
#[derive(Debug, Default)]
pub(crate) struct Deferred {
    sql: String,
    arguments: SqliteArguments,
}

impl Deferred {
    /// Adds a statement, with `?` for each of the arguments that are added next.
    pub(crate) fn statement(&mut self, sql: &str) {
        self.sql.push_str(sql);
        self.sql.push(';');
    }

    /// Adds the next argument.
    pub(crate) fn bind<'t, T: Encode<'t, Sqlite> + Type<Sqlite>>(
        &mut self,
        value: T,
    ) -> Result<(), StoreError> {
        self.arguments
            .add(value)
            .map_err(|source| StoreError::Failed { action: "binding an argument", source })
    }
}

impl Connection {
    pub(crate) fn new(turn: Turn) -> Self {
        Self { turn, deferred: Deferred::default() }
    }

    pub(crate) fn deferred(&mut self) -> &mut Deferred {
        &mut self.deferred
    }

    pub(crate) async fn commit(mut self) -> Result<(), CommitError> {
        let outcome = if self.deferred.sql.is_empty() {
            self.turn.commit().await
        } else {
            self.commit_with_deferred().await
        };
        outcome.map_err(|error| {
            self.turn.discard();
            commit_error(error)
        })
    }

    /// Runs the deferred statements and COMMIT in one go. The BEGIN behind it takes no lock and
    /// keeps the driver's count of open transactions right: dropping the turn rolls it back.
    async fn commit_with_deferred(&mut self) -> Result<(), sqlx::Error> {
        let Deferred { mut sql, arguments } = std::mem::take(&mut self.deferred);
        sql.push_str("COMMIT;BEGIN");
        sqlx::query_with(AssertSqlSafe(sql), arguments).execute(&mut **self).await.map(drop)
    }
}

/// What a failed COMMIT means. Only errors after which SQLite certainly has not written the end of
/// the transaction count as rolled back; a failing disk leaves the outcome open.
fn commit_error(error: sqlx::Error) -> CommitError {
    match primary_code(&error) {
        _ if is_busy(&error) => CommitError::RolledBack(store_error("commit")(error)),
        Some(code::FULL | code::READONLY | code::CONSTRAINT) => {
            CommitError::RolledBack(store_error("commit")(error))
        }
        _ => CommitError::Unknown(error.into()),
    }
}

impl Deref for Connection {
    type Target = SqliteConnection;
    fn deref(&self) -> &SqliteConnection {
        match self.turn.connection() {
            Some(connection) => connection,
            None => unreachable!("a connection is given up by commit only, which consumes it"),
        }
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        match self.turn.connection_mut() {
            Some(connection) => connection,
            None => unreachable!("a connection is given up by commit only, which consumes it"),
        }
    }
}
