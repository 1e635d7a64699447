//! The store: one database of one service, shared by all its processes.
//!
//! Invariants: a user's transaction has a connection of its own, and what the framework writes into
//! it goes with COMMIT (`connection`). The framework's own statements each are a transaction of
//! their own on connections of their own, which do not wait for the disk (`bookkeeping`): what is
//! lost there is only done again. Where it is not so, the statement says so.

mod barrier;
mod calls;
mod cleaner;
mod connection;
mod doorbell;
mod executed;
mod findings;
mod inbox;
mod lease;
mod literal;
mod outbox;
mod saga;
mod time;

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Finding, Timestamp};
use antiphon_messaging::Durability;
use antiphon_outbox::{CommitError, Migration, Store, StoreError};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::task::AbortHandle;

pub use connection::Connection;

use crate::connect;
use crate::error::{OpenError, open_error};
use crate::location::Location;
use crate::migrate;
use crate::pool::{Pool, Turn};
use crate::schema;
use crate::settings::Settings;
use cleaner::Cleaner;
use doorbell::{Attendant, Doorbell};
use inbox::Days;
use outbox::Floors;
use time::Time;

/// Connections for what the framework does by itself.
const BOOKKEEPING_CONNECTIONS: u32 = 4;
/// Connections for reads outside of transactions.
const READERS: u32 = 2;
/// How much longer than the server lets a statement run its answer may take.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);
/// The limit of answers where the server lets statements run for ever.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// A service's database on PostgreSQL. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct PostgresStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    location: Location,
    settings: Settings,
    /// For users' transactions.
    pool: Arc<Pool>,
    bookkeeping: Arc<Pool>,
    readers: PgPool,
    time: Arc<Time>,
    doorbell: Arc<Doorbell>,
    days: Days,
    floors: Floors,
    durability: Durability,
    cleaner: Arc<Cleaner>,
    /// What works beside the store, and ends with it.
    tasks: [AbortHandle; 2],
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl PostgresStore {
    /// Opens the database at `url`, `postgres://user:password@host:port/database?sslmode=…`, and
    /// makes it if it is not there and the role may. The framework's tables are brought up to date;
    /// several processes may do so at once.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(url: &str, settings: Settings) -> Result<Self, OpenError> {
        let location = Location::new(url, &settings)?;
        let failed = |error| open_error(&location.shown, error);
        let mut connection = connect::enter(&location, &settings).await?;
        prepare(&mut connection, &location.shown).await?;
        let time = Time::new(settings.clock.clone(), &mut connection).await.map_err(failed)?;
        let fsync: String = sqlx::query_scalar("SELECT current_setting('fsync')")
            .fetch_one(&mut connection)
            .await
            .map_err(failed)?;
        let _ = connection.close().await;
        let durability = match fsync.as_str() {
            "on" => settings.synchronous_commit.durability(),
            _ => Durability::PageCache,
        };
        let bookkeeping = for_bookkeeping(&location);
        let own = connect::pool(bookkeeping.clone(), &settings, 1);
        let options = location.options.clone();
        let pool = Pool::new(options, &settings, settings.connections_max, executed::prepare());
        let none = String::new();
        let bookkeeping = Pool::new(bookkeeping, &settings, BOOKKEEPING_CONNECTIONS, none);
        let reading = location.options.clone().options([("default_transaction_read_only", "on")]);
        let readers = connect::pool(reading, &settings, READERS);
        let (time, doorbell) = (Arc::new(time), Arc::new(Doorbell::new()));
        let attendant = Attendant {
            doorbell: Arc::clone(&doorbell),
            time: Arc::clone(&time),
            bookkeeping: Arc::clone(&bookkeeping),
            own,
        };
        let cleaner = Arc::new(Cleaner::default());
        let tasks = [
            tokio::spawn(attendant.run()).abort_handle(),
            tokio::spawn(Arc::clone(&cleaner).run(Arc::clone(&bookkeeping))).abort_handle(),
        ];
        let (days, floors) = (Days::default(), Floors::default());
        Ok(Self(Arc::new(Inner {
            location,
            settings,
            pool,
            bookkeeping,
            readers,
            time,
            doorbell,
            days,
            floors,
            durability,
            cleaner,
            tasks,
        })))
    }

    /// Applies those of the service's own migrations that are missing, in one transaction.
    /// Several processes may do so at once.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was changed then.
    pub async fn migrate(&self, service: &str, migrations: &[Migration]) -> Result<(), OpenError> {
        let database = self.location();
        let Inner { location, settings, .. } = &*self.0;
        let mut connection = connect::connect(&location.options, settings.connect_timeout)
            .await
            .map_err(migrate::failed(database))?;
        if migrate::pending(&mut connection, database, service, migrations).await?.is_empty() {
            return Ok(());
        }
        let mut transaction = connection.begin().await.map_err(migrate::failed(database))?;
        migrate::lock(&mut transaction, database).await?;
        let pending = migrate::pending(&mut transaction, database, service, migrations).await?;
        for migration in pending {
            let now = self.now();
            migrate::apply_one(&mut transaction, database, service, migration, now).await?;
        }
        transaction.commit().await.map_err(migrate::failed(database))
    }

    /// Connections for statements that only read, outside of transactions.
    #[must_use]
    pub fn reader(&self) -> &PgPool {
        &self.0.readers
    }

    /// Where the database is, without the password.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.0.location.shown
    }

    /// What a commit survives.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.0.durability
    }

    /// A connection for a statement of the framework that is a transaction of its own.
    async fn bookkeeping(&self) -> Result<Turn, StoreError> {
        self.0.bookkeeping.checkout().await
    }

    fn doorbell(&self) -> &Doorbell {
        &self.0.doorbell
    }

    fn cleaner(&self) -> &Cleaner {
        &self.0.cleaner
    }

    fn floors(&self) -> &Floors {
        &self.0.floors
    }

    fn days(&self) -> &Days {
        &self.0.days
    }

    /// After which time an answer is lost, not late.
    fn answer_max(&self) -> Duration {
        match self.0.settings.statement_timeout {
            Duration::ZERO => ANSWER_MAX,
            limit => limit + ANSWER_MARGIN,
        }
    }

    /// Waits for the answer to a statement of the framework.
    async fn answer<T>(
        &self,
        answer: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        connect::within(self.answer_max(), answer).await
    }
}

/// Statements of the framework find their rows by index and in its order, whatever the statistics
/// say of a table that is full now and empty then: left to itself, the planner reads and sorts whole
/// lanes. So no plan depends on the values, and none is made twice.
fn for_bookkeeping(location: &Location) -> PgConnectOptions {
    location.relaxed().options([
        ("plan_cache_mode", "force_generic_plan"),
        ("enable_seqscan", "off"),
        ("enable_bitmapscan", "off"),
        ("enable_sort", "off"),
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
        ("jit", "off"),
    ])
}

/// Makes sure that the database has the framework's tables.
async fn prepare(connection: &mut PgConnection, database: &str) -> Result<(), OpenError> {
    if migrate::is_current(connection, database, schema::STORE).await? {
        return Ok(());
    }
    let mut transaction = connection.begin().await.map_err(migrate::failed(database))?;
    migrate::lock(&mut transaction, database).await?;
    migrate::apply(&mut transaction, database, schema::STORE).await?;
    transaction.commit().await.map_err(migrate::failed(database))
}

impl Store for PostgresStore {
    type Connection = Connection;

    async fn begin(&self) -> Result<Connection, StoreError> {
        let turn = self.0.pool.begin().await?;
        Ok(Connection::new(turn, self.0.settings.key_locks, self.answer_max()))
    }

    async fn commit(&self, connection: Connection) -> Result<(), CommitError> {
        let has_messages = connection.has_messages();
        connection.commit().await?;
        if has_messages {
            self.doorbell().ring();
        }
        Ok(())
    }

    fn now(&self) -> Timestamp {
        self.0.time.now()
    }

    async fn findings(&self) -> Vec<Finding> {
        self.examine().await
    }
}
