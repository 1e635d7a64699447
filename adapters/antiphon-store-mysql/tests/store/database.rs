//! A database of its own for each test, on the server that the tests share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use antiphon_core::{Clock, MessageId, Timestamp};
use antiphon_messaging::Message;
use antiphon_outbox::{Confirmation, LeaseStore, OutboxRow, OutboxStore, Position, Store};
use antiphon_store_mysql::{MysqlStore, Settings};
use antiphon_testing::services::Service;
use bytes::Bytes;
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection};

/// A name on the server that is dropped with what is behind it.
pub(crate) struct Database {
    server: String,
    name: String,
}

impl Database {
    /// A name that nobody else has. The database is made by who opens it.
    pub(crate) fn new() -> Self {
        Self::on(&Service::Mariadb.url())
    }

    /// The same on another server.
    pub(crate) fn on(url: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("antiphon_test_{}_{count}", std::process::id());
        Self { server: url.rsplit_once('/').unwrap().0.to_owned(), name }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn url(&self) -> String {
        format!("{}/{}", self.server, self.name)
    }

    /// A connection of the test's own.
    pub(crate) async fn connect(&self) -> MySqlConnection {
        MySqlConnection::connect(&self.url()).await.unwrap()
    }

    /// Opens it as one more process does.
    pub(crate) async fn open(&self) -> MysqlStore {
        self.open_with(Settings::default()).await
    }

    pub(crate) async fn open_with(&self, settings: Settings) -> MysqlStore {
        MysqlStore::open(&self.url(), settings).await.unwrap_or_else(|error| {
            panic!("{error}; start the server with `cargo xtask services up mariadb`")
        })
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (url, name) = (format!("{}/mysql", self.server), self.name.clone());
        // The runtime of the test may be ending.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let mut connection = MySqlConnection::connect(&url).await?;
                // What the test has dropped just now is undone by its runtime, which waits for us.
                let ids: Vec<u64> = sqlx::query_scalar(
                    "SELECT CAST(id AS UNSIGNED) FROM information_schema.processlist WHERE db = ?",
                )
                .bind(&name)
                .fetch_all(&mut connection)
                .await?;
                for id in ids {
                    let kill = AssertSqlSafe(format!("KILL CONNECTION {id}"));
                    // It may have ended by itself.
                    let _ = sqlx::raw_sql(kill).execute(&mut connection).await;
                }
                let statement = format!("DROP DATABASE IF EXISTS `{name}`");
                sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await
            })
        });
        // A server that the test has stopped takes its databases along.
        let _ = dropping.join();
    }
}

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

pub(crate) fn message_with(key: &str, body: impl Into<Bytes>) -> Message {
    Message { body: body.into(), ..message(key) }
}

pub(crate) async fn emit(store: &MysqlStore, messages: &[Message]) {
    let mut connection = store.begin().await.unwrap();
    store.append(&mut connection, messages).await.unwrap();
    store.commit(connection).await.unwrap();
}

pub(crate) async fn read_rows(store: &MysqlStore) -> Vec<OutboxRow> {
    let positions: Vec<Position> = (0..16).map(|lane| Position { lane, after: None }).collect();
    store.read(&positions, store.now(), 100_000).await.unwrap()
}

pub(crate) async fn read_all(store: &MysqlStore) -> Vec<Message> {
    read_rows(store).await.into_iter().map(|row| row.message).collect()
}

/// Confirms everything that can be read.
pub(crate) async fn confirm_all(store: &MysqlStore, owner: &str) -> usize {
    let ttl = std::time::Duration::from_secs(5);
    let leases = store.acquire("outbox", 16, 16, owner, ttl).await.unwrap();
    let rows = read_rows(store).await;
    let confirmations: Vec<Confirmation> = leases
        .iter()
        .map(|lease| Confirmation {
            lease: lease.clone(),
            rows: rows.iter().filter(|row| row.lane == lease.lane).map(|row| row.seq).collect(),
        })
        .collect();
    assert!(store.confirm(&confirmations).await.unwrap().is_empty());
    store.leave("outbox", owner).await.unwrap();
    rows.len()
}

/// A moment that no test waits for.
pub(crate) const FAR: Timestamp = Timestamp::from_millis(4_000_000_000_000);
