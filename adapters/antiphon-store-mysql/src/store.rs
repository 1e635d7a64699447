//! The store: one database of one service, shared by its processes.
//!
//! Invariants: a transaction has a session of its own (`session`); what the framework writes into a
//! user's transaction goes with COMMIT where it can (`connection`); everything else reads outside of
//! transactions, and sees what is committed.

mod barrier;
mod calls;
mod connection;
mod findings;
mod inbox;
mod lease;
mod outbox;
mod saga;

use std::sync::{Arc, Weak};

use antiphon_core::{Finding, Timestamp};
use antiphon_messaging::Durability;
use antiphon_outbox::{CommitError, Migration, Store, StoreError};
use parking_lot::Mutex;
use sqlx::{Connection as _, MySqlPool};

pub use connection::Connection;

use crate::connect;
use crate::error::{OpenError, open_error, store_error};
use crate::location::Location;
use crate::migrate::Migrator;
use crate::schema;
use crate::server::Server;
use crate::session::{self, Kind, READERS_MAX, Session, Sessions, within};
use crate::settings::Settings;
use crate::sql::{Answer, Sql, run};
use crate::time::{self, LOOK_EVERY, Time};

/// A service's database on a MySQL or MariaDB server. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct MysqlStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    location: Location,
    settings: Settings,
    server: Server,
    time: Time,
    transactions: Arc<Sessions>,
    reads: Arc<Sessions>,
    /// For the user's statements outside of transactions.
    reader: MySqlPool,
    /// Which rows of the counters this process prefers.
    shard: u32,
    /// What lies before it is beyond the horizon; it may lie further ahead by now.
    horizon: Mutex<[u8; 16]>,
}

/// How many rows each counter has.
const SHARDS: u32 = 64;

impl MysqlStore {
    /// Opens the database at `url`, `mysql://user:password@host:port/name`, and makes it if it is
    /// not there and the user may. The framework's tables are brought up to date.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(url: &str, settings: Settings) -> Result<Self, OpenError> {
        let location = Location::parse(url, &settings)?;
        let (mut connection, server) = connect::enter(&location, &settings).await?;
        for finding in server.findings().iter().filter(|finding| finding.advice.is_some()) {
            tracing::warn!(database = location.place(), "{finding}");
        }
        Migrator { connection: &mut connection, location: &location }.make(schema::STORE).await?;
        let failed = |error| open_error(location.place(), location.user(), error);
        let time = Time::of(settings.clock.clone(), &mut connection).await.map_err(failed)?;
        let _ = connection.close().await;
        let transactions = Sessions::new(&location, Kind::Transactions, &settings);
        let reads = Sessions::new(&location, Kind::Reads, &settings);
        let reader = session::pool(&location, READERS_MAX, &settings);
        let (shard, horizon) = (fastrand::u32(..), Mutex::new([0; 16]));
        let store = Self(Arc::new(Inner {
            location,
            settings,
            server,
            time,
            transactions,
            reads,
            reader,
            shard,
            horizon,
        }));
        tokio::spawn(tend(Arc::downgrade(&store.0)));
        Ok(store)
    }

    /// Applies those of the service's own migrations that are missing. Several processes may do so
    /// at once. A migration may have several statements, each ended by `;`; the server commits a
    /// change of a table at once, so when one fails, those before it stay, and the next start goes
    /// on with it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn migrate(&self, service: &str, migrations: &[Migration]) -> Result<(), OpenError> {
        let location = &self.0.location;
        // Not one of the pool's: changes of tables may take longer than any answer should.
        let mut connection = session::connect(&location.options(), Kind::Reads, &self.0.settings)
            .await
            .map_err(|error| open_error(location.place(), location.user(), error))?;
        let now = self.now();
        let migrated = Migrator { connection: &mut connection, location }
            .migrate(service, migrations, now)
            .await;
        let _ = connection.close().await;
        migrated
    }

    /// Connections for statements outside of transactions, each of which stands for itself.
    #[must_use]
    pub fn reader(&self) -> &MySqlPool {
        &self.0.reader
    }

    /// Server and database, without the password.
    #[must_use]
    pub fn place(&self) -> &str {
        self.0.location.place()
    }

    /// What a commit survives, by what the server said when the database was opened.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.0.server.durability()
    }

    /// Runs statements outside of transactions.
    async fn ask(&self, action: &'static str, sql: Sql) -> Result<Vec<Answer>, StoreError> {
        let mut session = self.0.reads.acquire().await?;
        let answer = self.ask_on(&mut session, sql).await;
        session.settle(answer).map_err(store_error(action))
    }

    async fn ask_on(&self, session: &mut Session, sql: Sql) -> Result<Vec<Answer>, sqlx::Error> {
        within(self.0.settings.statement_timeout, run(session.sql()?, sql)).await
    }

    /// The rows of the counters that a session writes, so that two of them seldom meet.
    fn shard(&self, session: u32) -> i64 {
        i64::from(self.0.shard.wrapping_add(session) % SHARDS)
    }
}

/// Looks at the database's clock, and closes connections that nobody needs, as long as the store is
/// there.
async fn tend(store: Weak<Inner>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(inner) = store.upgrade() else { return };
        if inner.time.is_databases()
            && let Err(error) = look(&inner).await
        {
            tracing::debug!(%error, "the clock goes on by itself");
        }
        inner.transactions.close_silent().await;
        inner.reads.close_silent().await;
    }
}

async fn look(inner: &Inner) -> Result<(), StoreError> {
    let mut session = inner.reads.acquire().await?;
    let answer = match session.sql() {
        Ok(connection) => within(inner.settings.statement_timeout, time::look(connection)).await,
        Err(error) => Err(error),
    };
    inner.time.set(session.settle(answer).map_err(store_error("looking at the clock"))?);
    Ok(())
}

/// Commits a transaction of the framework itself, whose steps may all be repeated.
async fn commit(connection: Connection, action: &'static str) -> Result<(), StoreError> {
    connection.commit().await.map_err(|error| match error {
        CommitError::RolledBack(error) => error,
        unknown => StoreError::Failed { action, source: unknown.into() },
    })
}

impl Store for MysqlStore {
    type Connection = Connection;

    async fn begin(&self) -> Result<Connection, StoreError> {
        self.0.transactions.acquire().await.map(Connection::new)
    }

    async fn commit(&self, connection: Connection) -> Result<(), CommitError> {
        connection.commit().await
    }

    fn now(&self) -> Timestamp {
        self.0.time.now()
    }

    async fn met_other_work(&self, connection: &mut Connection) -> bool {
        connection.met_other_work().await
    }

    async fn findings(&self) -> Vec<Finding> {
        self.examine().await
    }
}
