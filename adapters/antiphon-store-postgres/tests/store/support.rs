//! A database of its own for each test, on the server of the tests.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_core::{Clock, MessageId};
use antiphon_messaging::{LANES, Message};
use antiphon_outbox::{Confirmation, LeaseStore, OutboxRow, OutboxStore, Position, Store};
use antiphon_store_postgres::{Connection, Migration, PostgresStore, Settings};
use antiphon_testing::services::Service;
use bytes::Bytes;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::sync::OnceCell;

/// A database that is dropped with this.
pub(crate) struct Database {
    name: String,
}

impl Database {
    /// An empty one, that is not there yet.
    pub(crate) fn none() -> Self {
        Self { name: format!("test_{}", uuid::Uuid::new_v4().simple()) }
    }

    /// One that has the framework's tables: copied, which is faster than making them.
    pub(crate) async fn new() -> Self {
        let template = template().await;
        let database = Self::none();
        run(&format!("CREATE DATABASE {} TEMPLATE {template}", database.name)).await;
        database
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn url(&self) -> String {
        url_of(&self.name)
    }

    /// Opens it as one more process does.
    pub(crate) async fn open(&self, settings: Settings) -> PostgresStore {
        PostgresStore::open(&self.url(), settings).await.unwrap()
    }

    /// A connection that knows nothing of the framework.
    pub(crate) async fn connect(&self) -> PgConnection {
        connect(&self.url()).await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // The runtime of the test may not wait here.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(run(&statement));
        });
        let dropped = dropping.join();
        if !std::thread::panicking() {
            dropped.expect("the database of the test can be dropped");
        }
    }
}

/// The URL of a database on the server of the tests.
pub(crate) fn url_of(database: &str) -> String {
    let url = Service::Postgres.url();
    let (server, _) = url.rsplit_once('/').expect("the URL names a database");
    format!("{server}/{database}")
}

#[expect(clippy::panic, reason = "a test without its server says how to start it")]
pub(crate) async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap_or_else(|error| {
        panic!("{error}: no PostgreSQL at {url}; start it with `cargo xtask services up postgres`")
    })
}

/// Runs one statement on the server.
pub(crate) async fn run(statement: &str) {
    let mut connection = connect(&Service::Postgres.url()).await;
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// The name of the database that is copied. It stays on the server for the next run, as long as the
/// schema is the same.
async fn template() -> &'static str {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    TEMPLATE
        .get_or_init(|| async {
            let schema = include_str!("../../src/schema.rs");
            let name = format!("template_{:016x}", Migration::new("", schema).checksum());
            let mut connection = connect(&Service::Postgres.url()).await;
            let others: Vec<String> = sqlx::query_scalar(
                "SELECT datname::text FROM pg_database WHERE datname LIKE 'template\\_%'",
            )
            .fetch_all(&mut connection)
            .await
            .unwrap();
            if !others.contains(&name) {
                make_template(&name).await;
            }
            for other in others.iter().filter(|other| **other != name) {
                let statement = format!("DROP DATABASE IF EXISTS {other}");
                let _ = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await;
            }
            connection.close().await.unwrap();
            name
        })
        .await
}

/// Makes it under another name first: it must be whole when others find it.
async fn make_template(name: &str) {
    let making = Database::none();
    drop(PostgresStore::open(&making.url(), Settings::default()).await.unwrap());
    let mut connection = connect(&Service::Postgres.url()).await;
    let statement = format!("ALTER DATABASE {} RENAME TO {name}", making.name);
    if let Err(error) = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await {
        let code = error.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some("42P04"), "only another program may be faster: {error}");
    }
    connection.close().await.unwrap();
}

/// A message made now, by this machine's clock.
pub(crate) fn message(key: &str) -> Message {
    let time = Clock::system().now();
    Message {
        id: MessageId::new(time),
        topic: "orders".into(),
        kind: "shop.orders.v1.OrderPlaced".into(),
        source: "orders".into(),
        key: key.into(),
        time,
        not_before: None,
        attributes: BTreeMap::from([("correlationid".to_owned(), "c".to_owned())]),
        body: Bytes::from_static(b"body"),
    }
}

/// Commits messages.
pub(crate) async fn emit(store: &PostgresStore, messages: &[Message]) {
    let mut connection = store.begin().await.unwrap();
    store.append(&mut connection, messages).await.unwrap();
    store.commit(connection).await.unwrap();
}

/// Adds a message to an open transaction, after a statement of its own.
pub(crate) async fn emit_in(store: &PostgresStore, connection: &mut Connection) {
    sqlx::query("SELECT pg_current_xact_id()::text").execute(&mut **connection).await.unwrap();
    store.append(connection, &[message("k")]).await.unwrap();
}

pub(crate) async fn read_all(store: &PostgresStore) -> Vec<Message> {
    read_rows(store).await.into_iter().map(|row| row.message).collect()
}

pub(crate) async fn read_rows(store: &PostgresStore) -> Vec<OutboxRow> {
    let positions: Vec<Position> = (0..LANES).map(|lane| Position { lane, after: None }).collect();
    store.read(&positions, store.now(), 10_000).await.unwrap()
}

/// Removes everything that waits, as a relay that has the lanes.
pub(crate) async fn confirm_all(store: &PostgresStore) {
    let leases =
        store.acquire("outbox", LANES, LANES, "support", Duration::from_secs(5)).await.unwrap();
    let rows = read_rows(store).await;
    let confirmations: Vec<Confirmation> = leases
        .iter()
        .map(|lease| Confirmation {
            lease: lease.clone(),
            rows: rows.iter().filter(|row| row.lane == lease.lane).map(|row| row.seq).collect(),
        })
        .collect();
    assert!(store.confirm(&confirmations).await.unwrap().is_empty());
    store.release(&leases).await.unwrap();
}
