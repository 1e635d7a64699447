//! The open transaction that user code runs its statements on.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use antiphon_messaging::Message;
use antiphon_outbox::{CommitError, StoreError};
use sqlx::{AssertSqlSafe, PgConnection};

use super::literal::Text;
use super::outbox::Rows;
use crate::connect::within;
use crate::error::commit_error;
use crate::pool::{Turn, is_answer};

/// An open transaction: a `sqlx` connection that commits with
/// [`PostgresStore`](crate::PostgresStore)'s `commit` and otherwise rolls back. Savepoints
/// (`sqlx::Connection::begin`) nest in it.
#[derive(Debug)]
pub struct Connection {
    turn: Turn,
    deferred: Text,
    rows: Rows,
    commit_timeout: Duration,
}

impl Connection {
    pub(crate) fn new(turn: Turn, key_locks: bool, commit_timeout: Duration) -> Self {
        Self { turn, deferred: Text::default(), rows: Rows::new(key_locks), commit_timeout }
    }

    /// Begins a statement of the framework that goes with COMMIT, in the same round trip. One that
    /// fails makes the commit fail.
    pub(crate) fn defer(&mut self, sql: &str) -> &mut Text {
        self.deferred.sql(if self.deferred.is_empty() { "" } else { ";" }).sql(sql)
    }

    pub(crate) fn append(&mut self, messages: &[Message]) -> Result<(), StoreError> {
        self.rows.add(messages)
    }

    /// Whether it commits messages.
    pub(crate) fn has_messages(&self) -> bool {
        !self.rows.is_empty()
    }

    /// Commits, in one round trip with what was deferred; the messages come last.
    ///
    /// The server opens another transaction at once (AND CHAIN), for the driver goes on counting
    /// one: it is empty, and undone when the connection goes back. A transaction that has failed
    /// before answers any statement with an error, but COMMIT with ROLLBACK, which the driver does
    /// not tell from a commit: so there is always a statement before it.
    pub(crate) async fn commit(mut self) -> Result<(), CommitError> {
        let mut text = std::mem::take(&mut self.deferred);
        self.rows.write(&mut text);
        if text.is_empty() {
            text.sql("SELECT");
        }
        text.sql(";COMMIT AND CHAIN");
        let limit = self.commit_timeout;
        let committing = sqlx::raw_sql(AssertSqlSafe(text.into_string())).execute(&mut *self);
        match within(limit, committing).await {
            Ok(_) => {
                self.turn.done();
                Ok(())
            }
            Err(error) => {
                if !is_answer(&error) {
                    self.turn.discard();
                }
                Err(commit_error(error))
            }
        }
    }
}

impl Deref for Connection {
    type Target = PgConnection;
    fn deref(&self) -> &PgConnection {
        &self.turn
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.turn
    }
}
