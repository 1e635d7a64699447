//! The store: one database file of one service, shared by its processes on this machine.
//!
//! Invariants: one connection per process writes, and its users take turns (`writer`); what the
//! framework writes into a user's transaction goes with COMMIT (`connection`); everything else
//! reads through a small pool, which sees committed transactions only.

mod barrier;
mod calls;
mod connection;
mod inbox;
mod json;
mod lease;
mod outbox;
mod saga;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use antiphon_core::Timestamp;
use antiphon_messaging::Durability;
use antiphon_outbox::{CommitError, Migration, Store, StoreError};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, SqlitePool};

pub use connection::Connection;

use crate::error::{OpenError, open_error};
use crate::location;
use crate::migrate;
use crate::schema;
use crate::settings::{Settings, Synchronous};
use writer::Writer;

/// A service's database in one SQLite file. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct SqliteStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    settings: Settings,
    writer: Arc<Writer>,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the database at `location`, a path or a `sqlite:` URL, and makes it if it is not
    /// there, with its folder. The framework's tables are brought up to date.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(location: &str, settings: Settings) -> Result<Self, OpenError> {
        let path = location::prepare(location)?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(match settings.synchronous {
                Synchronous::Normal => SqliteSynchronous::Normal,
                Synchronous::Full => SqliteSynchronous::Full,
            })
            .foreign_keys(true)
            .busy_timeout(settings.busy_timeout)
            .statement_cache_capacity(256)
            .pragma("journal_size_limit", "67108864")
            // Hot pages are copied into the file once per checkpoint: four times the default.
            .pragma("wal_autocheckpoint", "4000")
            .disable_statement_logging();
        let readers = SqlitePoolOptions::new()
            .max_connections(settings.readers.max(1))
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(options.clone().pragma("query_only", "ON"));
        let writer = Writer::new(options, settings.busy_timeout);
        let store = Self(Arc::new(Inner { path, settings, writer, readers }));
        store.prepare().await?;
        Ok(store)
    }

    /// Applies those of the service's own migrations that are missing, in one transaction.
    /// Several processes may do so at once.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was changed then.
    pub async fn migrate(&self, service: &str, migrations: &[Migration]) -> Result<(), OpenError> {
        let path = self.path();
        let mut reader = self.reader().acquire().await.map_err(migrate::failed(path))?;
        if migrate::pending(&mut reader, path, service, migrations).await?.is_empty() {
            return Ok(());
        }
        drop(reader);
        let mut connection = self.begin_opening().await?;
        for migration in migrate::pending(&mut connection, path, service, migrations).await? {
            migrate::apply_one(&mut connection, path, service, migration, self.now()).await?;
        }
        self.commit(connection).await.map_err(|error| open_error(path, None, error.into()))
    }

    /// Connections for statements that only read, outside of transactions.
    #[must_use]
    pub fn reader(&self) -> &SqlitePool {
        &self.0.readers
    }

    /// Where the database lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What a commit survives.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.0.settings.synchronous.durability()
    }

    /// Makes sure that the file can be written and has the framework's tables.
    async fn prepare(&self) -> Result<(), OpenError> {
        // Opening for writing first: it switches to write-ahead logging, and finds out about
        // permissions even when nothing is missing.
        let mut connection = self.begin_opening().await?;
        if migrate::is_current(&mut connection, self.path(), schema::STORE).await? {
            return Ok(());
        }
        migrate::apply(&mut connection, self.path(), schema::STORE).await?;
        self.commit(connection).await.map_err(|error| open_error(self.path(), None, error.into()))
    }

    async fn begin_opening(&self) -> Result<Connection, OpenError> {
        self.begin().await.map_err(|error| match error {
            StoreError::Failed { source, .. } => {
                let primary = source.downcast_ref().and_then(crate::error::primary_code);
                open_error(self.path(), primary, source)
            }
            other => open_error(self.path(), None, other.into()),
        })
    }
}

/// Commits a transaction of the framework itself, whose steps may all be repeated.
async fn commit(connection: Connection, action: &'static str) -> Result<(), StoreError> {
    connection.commit().await.map_err(|error| match error {
        CommitError::RolledBack(error) => error,
        unknown => StoreError::Failed { action, source: unknown.into() },
    })
}

impl Store for SqliteStore {
    type Connection = Connection;

    async fn begin(&self) -> Result<Connection, StoreError> {
        self.0.writer.begin().await.map(Connection::new)
    }

    async fn commit(&self, connection: Connection) -> Result<(), CommitError> {
        connection.commit().await
    }

    fn now(&self) -> Timestamp {
        self.0.settings.clock.now()
    }

    fn one_writer(&self) -> bool {
        true
    }
}
