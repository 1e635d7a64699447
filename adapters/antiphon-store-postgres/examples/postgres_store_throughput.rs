//! Measures the store: what the outbox adds to a transaction, how fast the relay empties it, and
//! whether its table stays small. Release builds only make sense:
//!
//! `cargo run --release -p antiphon-store-postgres --example postgres_store_throughput [transactions|relay|both]`
//!
//! With `--hot MINUTES` it writes and relays for so long at half of what is possible, while a
//! transaction that has written stays open in another database of the server: what is deleted
//! meanwhile must be cleared away all the same.
//!
//! The server is the one of `cargo xtask services up postgres`, in databases that are made and dropped.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for one's own eyes")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use antiphon_core::{Clock, Component, MessageId, ShutdownHandle};
use antiphon_messaging::{
    AnyBroker, Broker, Capabilities, Durability, Message, PublishError, Receipt, Source,
    SubscribeError, Subscription, Topology,
};
use antiphon_outbox::{Database, OutboxStore, Relay, Store};
use antiphon_store_postgres::{Connection, Migration, PostgresStore, Settings};
use antiphon_telemetry::Telemetry;
use antiphon_testing::services::Service;
use parking_lot::Mutex;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

const TRANSACTIONS: usize = 3_000;
const ROUNDS: usize = 3;
/// Rows that wait when the relay starts.
const ROWS: usize = 200_000;
const WRITERS: usize = 8;
/// Messages of one transaction.
const BATCH: usize = 10;
/// Writers wait while so many rows wait.
const WAITING_MAX: usize = 20_000;
const BURST: Duration = Duration::from_secs(10);

#[tokio::main(worker_threads = 2)]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wants = |name: &str| arguments.is_empty() || arguments.iter().any(|one| one == name);
    let server = Server::connect().await;
    if wants("transactions") {
        transactions(&server).await;
    }
    if wants("relay") {
        relay(&server).await;
    }
    if wants("both") {
        both(&server).await;
    }
    if let Some(at) = arguments.iter().position(|one| one == "--hot") {
        hot(&server, arguments[at + 1].parse().unwrap()).await;
    }
    server.drop_databases().await;
}

/// The server, where databases are made for this program.
struct Server {
    url: String,
    durability: String,
    databases: AtomicUsize,
}

impl Server {
    async fn connect() -> Self {
        let url = Service::Postgres.url();
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let settings = "SELECT 'synchronous_commit=' || current_setting('synchronous_commit')
                               || ', fsync=' || current_setting('fsync')";
        let durability = sqlx::query_scalar(settings).fetch_one(&mut connection).await.unwrap();
        let url = url.rsplit_once('/').unwrap().0.to_owned();
        Self { url, durability, databases: AtomicUsize::new(0) }
    }

    fn name(number: usize) -> String {
        format!("antiphon_measured_{}_{number}", std::process::id())
    }

    /// The URL of a database that is not there yet.
    fn database(&self) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        format!("{}/{}", self.url, Self::name(number))
    }

    async fn store(&self) -> PostgresStore {
        let settings = Settings { connections_max: 16, ..Settings::default() };
        PostgresStore::open(&self.database(), settings).await.unwrap()
    }

    async fn drop_databases(&self) {
        let mut connection = PgConnection::connect(&Service::Postgres.url()).await.unwrap();
        for number in 0..self.databases.load(Ordering::Relaxed) {
            let name = Self::name(number);
            let drop = AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
            sqlx::raw_sql(drop).execute(&mut connection).await.unwrap();
        }
    }
}

fn message(n: usize) -> Message {
    let time = Clock::system().now();
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    Message {
        id: MessageId::new(time),
        topic: "orders".into(),
        kind: "shop.orders.v1.OrderPlaced".into(),
        source: "orders".into(),
        key: format!("order-{}", n % 1_000),
        time,
        not_before: None,
        attributes: BTreeMap::from([("traceparent".to_owned(), traceparent.to_owned())]),
        body: vec![7_u8; 200].into(),
    }
}

fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Of a hundred times in ascending order, the one at `percent`.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    times.get(times.len() * percent / 100).copied().unwrap_or_default()
}

/// A transaction of three statements, with a message and without in turns, so that whatever else
/// happens happens to both.
async fn transactions(server: &Server) {
    let store = server.store().await;
    let tables = "
        CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text,
                             status text, total bigint);
        CREATE TABLE stock (sku integer PRIMARY KEY, on_hand integer);
        INSERT INTO stock VALUES (1, 1000000);";
    store.migrate("measured", &[Migration::new("1", tables)]).await.unwrap();
    let mut took = [Vec::new(), Vec::new()];
    for n in 0..TRANSACTIONS * 2 {
        let message = message(n);
        let begun = Instant::now();
        let mut connection = business(&store, n).await;
        if n % 2 == 1 {
            store.append(&mut connection, std::slice::from_ref(&message)).await.unwrap();
        }
        store.commit(connection).await.unwrap();
        took[n % 2].push(begun.elapsed());
    }
    let [without, with] = took.map(|mut took| {
        took.sort_unstable();
        percentile(&took, 50)
    });
    println!(
        "transaction of three statements, {}: p50 {without:?}, with a message {with:?} ({:+.1} %)",
        server.durability,
        (with.as_secs_f64() / without.as_secs_f64() - 1.0) * 100.0
    );
}

async fn business(store: &PostgresStore, n: usize) -> Connection {
    let mut connection = store.begin().await.unwrap();
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO orders (customer, status, total) VALUES ($1, 'PENDING', $2) RETURNING id",
    )
    .bind(format!("customer-{n}"))
    .bind(1_999_i64)
    .fetch_one(&mut *connection)
    .await
    .unwrap();
    sqlx::query("UPDATE stock SET on_hand = on_hand - 1 WHERE sku = 1 AND on_hand > 0")
        .execute(&mut *connection)
        .await
        .unwrap();
    sqlx::query("UPDATE orders SET status = 'CONFIRMED' WHERE id = $1")
        .bind(id)
        .execute(&mut *connection)
        .await
        .unwrap();
    connection
}

/// Takes everything, and remembers how old it was.
#[derive(Clone, Default)]
struct Sink {
    taken: Arc<AtomicUsize>,
    ages: Arc<Mutex<Vec<Duration>>>,
}

impl Broker for Sink {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: Durability::Memory,
            ordered: true,
            holds_keys: true,
            retry_delay_max: Duration::ZERO,
            publish_delay_max: Duration::ZERO,
            dead_letters: false,
            counts_attempts: false,
            replays: true,
            answers: false,
            message_bytes_max: 1_024,
        }
    }

    async fn declare(&self, _: &Topology) -> Result<(), SubscribeError> {
        Ok(())
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<Receipt, PublishError>> {
        let now = Clock::system().now();
        self.taken.fetch_add(batch.len(), Ordering::Relaxed);
        self.ages.lock().extend(batch.iter().map(|message| now.since(message.time)));
        batch.iter().map(|_| Ok(Receipt)).collect()
    }

    async fn subscribe(&self, _: Subscription) -> Result<Box<dyn Source>, SubscribeError> {
        Err(SubscribeError { context: "nobody reads here".into(), transient: false, source: None })
    }
}

/// A database with its relay, which runs.
struct Relayed {
    database: Database<PostgresStore>,
    sink: Sink,
    handle: ShutdownHandle,
    relay: JoinHandle<()>,
    written: Arc<AtomicUsize>,
}

impl Relayed {
    fn start(store: PostgresStore) -> Self {
        let (database, sink) = (Database::new("measured", store), Sink::default());
        let relay = Relay::new(&database, AnyBroker::new(sink.clone()), &Telemetry::new());
        let (handle, shutdown) = ShutdownHandle::new();
        let relay = tokio::spawn(async move { relay.run(shutdown).await.unwrap() });
        Self { database, sink, handle, relay, written: Arc::default() }
    }

    fn taken(&self) -> usize {
        self.sink.taken.load(Ordering::Relaxed)
    }

    /// Waits until everything is published and removed.
    async fn finish(self) {
        self.handle.drain(Duration::from_secs(60));
        self.relay.await.unwrap();
        assert_eq!(self.database.store().backlog().await.unwrap().0, 0);
    }

    /// Writes for a while, so many messages per second or as many as there is room for. Answers how
    /// many were relayed per second.
    async fn write(&self, time: Duration, rows_per_second: Option<f64>) -> f64 {
        let ends = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            let (database, sink) = (self.database.clone(), self.sink.clone());
            let (written, ends) = (Arc::clone(&self.written), Arc::clone(&ends));
            let mut turns = rows_per_second.map(|rows| {
                let mut turns = interval(Duration::from_secs_f64((WRITERS * BATCH) as f64 / rows));
                turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
                turns
            });
            writers.spawn(async move {
                while !ends.load(Ordering::Relaxed) {
                    if let Some(turns) = &mut turns {
                        turns.tick().await;
                    }
                    let begin = written.fetch_add(BATCH, Ordering::Relaxed);
                    while begin > sink.taken.load(Ordering::Relaxed) + WAITING_MAX {
                        sleep(Duration::from_millis(1)).await;
                    }
                    let mut tx = database.begin().await.unwrap();
                    for n in begin..begin + BATCH {
                        tx.push(message(n));
                    }
                    tx.commit().await.unwrap();
                }
            });
        }
        let (begun, before) = (Instant::now(), self.taken());
        sleep(time).await;
        let rate = rate(self.taken() - before, begun.elapsed());
        ends.store(true, Ordering::Relaxed);
        writers.join_all().await;
        rate
    }
}

/// Rows that wait, to a broker that takes everything; the time ends when they are removed.
async fn relay(server: &Server) {
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let store = server.store().await;
        for begin in (0..ROWS).step_by(1_000) {
            let messages: Vec<Message> = (begin..begin + 1_000).map(message).collect();
            let mut connection = store.begin().await.unwrap();
            store.append(&mut connection, &messages).await.unwrap();
            store.commit(connection).await.unwrap();
        }
        let begun = Instant::now();
        let relayed = Relayed::start(store);
        while relayed.taken() < ROWS {
            sleep(Duration::from_millis(1)).await;
        }
        relayed.finish().await;
        rates.push(rate(ROWS, begun.elapsed()));
    }
    println!(
        "relay of waiting rows, removals with synchronous_commit=off: {:.0} rows/s (of {rates:.0?})",
        median(rates.clone())
    );
}

/// Writers and relay at once, both as fast as they can.
async fn both(server: &Server) {
    let relayed = Relayed::start(server.store().await);
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        rates.push(relayed.write(BURST / 2, None).await);
    }
    relayed.finish().await;
    println!(
        "{WRITERS} writers of {BATCH} messages per transaction and the relay, {}: {:.0} rows/s",
        server.durability,
        median(rates)
    );
}

/// Half of what is possible for a long time, with a transaction that stays open elsewhere.
async fn hot(server: &Server, minutes: u32) {
    let url = server.database();
    let elsewhere = PostgresStore::open(&url, Settings::default()).await.unwrap();
    let tables = [Migration::new("1", "CREATE TABLE held (number integer)")];
    elsewhere.migrate("measured", &tables).await.unwrap();
    let mut held = PgConnection::connect(&url).await.unwrap();
    let writes = "BEGIN; INSERT INTO held VALUES (1)";
    sqlx::raw_sql(writes).execute(&mut held).await.unwrap();

    let relayed = Relayed::start(server.store().await);
    let mut first = Vec::new();
    for _ in 0..ROUNDS {
        first.push(relayed.write(BURST, None).await);
    }
    let first = median(first);
    println!("hot, {}: {first:.0} rows/s at the beginning", server.durability);
    for minute in 1..=minutes {
        relayed.sink.ages.lock().clear();
        let rate = relayed.write(Duration::from_secs(60), Some(first / 2.0)).await;
        let mut ages = std::mem::take(&mut *relayed.sink.ages.lock());
        ages.sort_unstable();
        println!(
            "minute {minute}: {rate:.0} rows/s, p50 {:?}, p99 {:?}; {}",
            percentile(&ages, 50),
            percentile(&ages, 99),
            size(relayed.database.store()).await,
        );
    }
    // The machine may be another one by now: so beside it, a database without a past.
    let fresh = Relayed::start(server.store().await);
    let (mut last, mut without_past) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        last.push(relayed.write(BURST, None).await);
        without_past.push(fresh.write(BURST, None).await);
    }
    let (last, without_past) = (median(last), median(without_past));
    println!(
        "hot, after {minutes} minutes: {last:.0} rows/s ({:+.1} %), a database without a past \
         {without_past:.0} rows/s",
        (last / first - 1.0) * 100.0
    );
    sqlx::raw_sql("ROLLBACK").execute(&mut held).await.unwrap();
    relayed.finish().await;
    fresh.finish().await;
}

/// How large the outbox is.
async fn size(store: &PostgresStore) -> String {
    let row = sqlx::query(
        "SELECT pg_size_pretty(pg_table_size(relid)), pg_size_pretty(pg_indexes_size(relid)),
                n_dead_tup
           FROM pg_stat_user_tables WHERE relname = 'antiphon_outbox'",
    )
    .fetch_one(store.reader())
    .await
    .unwrap();
    let (table, indexes): (String, String) = (row.get(0), row.get(1));
    format!("table {table}, index {indexes}, {} dead", row.get::<i64, _>(2))
}
