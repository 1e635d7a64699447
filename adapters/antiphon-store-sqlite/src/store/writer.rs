//! The one connection of this process that writes, and whose turn it is.
//!
//! SQLite lets one transaction write at a time. Inside a process, transactions take turns in the
//! order in which they asked, without polling; the next one starts as soon as the one before has
//! ended. Between processes SQLite offers no queue, so the holder of the turn asks again after a
//! short random wait. The connection's own busy handler is off: it would sleep on the thread that
//! others wait for.

use std::sync::Arc;
use std::time::Duration;

use antiphon_outbox::StoreError;
use parking_lot::Mutex;
use sqlx::sqlite::{SqliteConnectOptions, SqliteTransactionManager};
use sqlx::{ConnectOptions, SqlSafeStr, SqliteConnection};
use sqlx_core::transaction::TransactionManager;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::error::{is_busy, store_error};

/// Waits between two attempts to get the lock from another process.
const WAIT_MIN: Duration = Duration::from_micros(200);
const WAIT_MAX: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Writer {
    options: SqliteConnectOptions,
    busy_timeout: Duration,
    turns: Arc<Semaphore>,
    /// The connection while nobody has the turn. Empty before the first use and after trouble.
    idle: Mutex<Option<SqliteConnection>>,
}

/// The right to use the writing connection, and the connection.
#[derive(Debug)]
pub(crate) struct Turn {
    writer: Arc<Writer>,
    /// `None` once it was found broken.
    connection: Option<SqliteConnection>,
    /// Whether a transaction may be open on it.
    open: bool,
    _permit: OwnedSemaphorePermit,
}

impl Writer {
    pub(crate) fn new(options: SqliteConnectOptions, busy_timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            options,
            busy_timeout,
            turns: Arc::new(Semaphore::new(1)),
            idle: Mutex::new(None),
        })
    }

    /// Waits for the turn and opens a transaction that writes.
    pub(crate) async fn begin(self: &Arc<Self>) -> Result<Turn, StoreError> {
        let give_up = Instant::now() + self.busy_timeout;
        let permit = tokio::time::timeout_at(give_up, Arc::clone(&self.turns).acquire_owned())
            .await
            .map_err(|_| StoreError::Busy("other transactions took too long".into()))?
            .map_err(|closed| StoreError::Failed { action: "begin", source: closed.into() })?;
        let connection = self.idle.lock().take();
        let mut turn = Turn { writer: Arc::clone(self), connection, open: false, _permit: permit };
        turn.begin(give_up).await?;
        Ok(turn)
    }

    async fn connect(&self) -> Result<SqliteConnection, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        // Only now: opening itself may have to wait for another process.
        sqlx::raw_sql("PRAGMA busy_timeout = 0").execute(&mut connection).await?;
        Ok(connection)
    }
}

impl Turn {
    async fn begin(&mut self, give_up: Instant) -> Result<(), StoreError> {
        let mut wait = WAIT_MIN;
        let mut replaced = false;
        loop {
            let error = match self.try_begin().await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if is_busy(&error) && Instant::now() < give_up {
                tokio::time::sleep(jitter(wait)).await;
                wait = (wait * 2).min(WAIT_MAX);
            } else if !is_busy(&error) && !replaced {
                // A transaction that SQLite itself has ended leaves the driver out of step.
                self.connection = None;
                replaced = true;
            } else {
                return Err(store_error("begin")(error));
            }
        }
    }

    async fn try_begin(&mut self) -> Result<(), sqlx::Error> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.writer.connect().await?),
        };
        // Set before: the statement may take effect although nobody waits for its answer.
        self.open = true;
        let statement = "BEGIN IMMEDIATE".into_sql_str();
        SqliteTransactionManager::begin(connection, Some(statement)).await
    }

    pub(crate) fn connection(&self) -> Option<&SqliteConnection> {
        self.connection.as_ref()
    }

    pub(crate) fn connection_mut(&mut self) -> Option<&mut SqliteConnection> {
        self.connection.as_mut()
    }

    /// Commits what was done.
    pub(crate) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        if let Some(connection) = &mut self.connection {
            SqliteTransactionManager::commit(connection).await?;
        }
        self.open = false;
        Ok(())
    }

    /// Gives the connection up: what it holds is undone when SQLite closes it.
    pub(crate) fn discard(&mut self) {
        self.connection = None;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            if self.open {
                // The driver's thread does it before anything that is asked of it later.
                SqliteTransactionManager::start_rollback(&mut connection);
            }
            *self.writer.idle.lock() = Some(connection);
        }
    }
}

fn jitter(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + fastrand::f64())
}
