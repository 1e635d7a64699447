//! Measures the store: what the outbox costs a transaction, how fast rows leave it, how fast the inbox
//! is. Release builds only make sense, on a server that has nothing else to do:
//!
//! `cargo run --release -p antiphon-store-mysql --example mysql_store_throughput [URL of an empty database]`

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for one's own eyes")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use antiphon_core::{Clock, Component, MessageId, ShutdownHandle};
use antiphon_messaging::{
    AnyBroker, Broker, Capabilities, Durability, LANES, Message, PublishError, Receipt, Source,
    SubscribeError, Subscription, Topology,
};
use antiphon_outbox::{
    Confirmation, Database, InboxStore, LeaseStore, OutboxStore, Position, Relay, Store,
};
use antiphon_store_mysql::{Migration, MysqlStore, Settings};
use antiphon_telemetry::Telemetry;
use antiphon_testing::services::Service;
use sqlx::AssertSqlSafe;
use tokio::task::JoinSet;
use tokio::time::Instant;

const TRANSACTIONS: usize = 1_500;
const ROWS: usize = 100_000;
const WRITERS: usize = 16;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let given = std::env::args().nth(1);
    let name = format!("antiphon_measured_{}", std::process::id());
    let server = Service::Mariadb.url();
    let server = server.rsplit_once('/').unwrap().0;
    let url = given.clone().unwrap_or_else(|| format!("{server}/{name}"));
    let store = MysqlStore::open(&url, Settings::default()).await.unwrap();
    let rows = "CREATE TABLE measured (id INT PRIMARY KEY, number INT NOT NULL)";
    store.migrate("measured", &[Migration::new("1", rows)]).await.unwrap();
    println!("{:?} on {}", store.durability(), store.place());
    transactions(&store).await;
    writers(&store).await;
    read_and_confirm(&store).await;
    relay(&store).await;
    inbox(&store).await;
    if given.is_none() {
        let drop = AssertSqlSafe(format!("DROP DATABASE {name}"));
        sqlx::raw_sql(drop).execute(store.reader()).await.unwrap();
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

/// A transaction of three statements, with a message or without.
async fn transaction(store: &MysqlStore, n: usize, emits: bool) {
    let mut connection = store.begin().await.unwrap();
    let id = i32::try_from(n).unwrap();
    for statement in [
        "INSERT INTO measured (id, number) VALUES (?, 1)",
        "UPDATE measured SET number = number + 1 WHERE id = ?",
        "SELECT number FROM measured WHERE id = ?",
    ] {
        sqlx::query(statement).bind(id).execute(&mut *connection).await.unwrap();
    }
    if emits {
        store.append(&mut connection, &[message(n)]).await.unwrap();
    }
    store.commit(connection).await.unwrap();
}

/// Both kinds in turns, so that whatever else happens happens to both.
async fn transactions(store: &MysqlStore) {
    let mut took = [Vec::new(), Vec::new()];
    for n in 0..TRANSACTIONS * 2 {
        let began = Instant::now();
        transaction(store, n, n % 2 == 1).await;
        took[n % 2].push(began.elapsed());
    }
    let [without, with] = took.map(|mut took| {
        took.sort_unstable();
        took[took.len() / 2]
    });
    let more = with.as_secs_f64() / without.as_secs_f64() * 100.0 - 100.0;
    println!(
        "transaction of 3 statements: p50 {without:?}, with a message {with:?} ({more:+.1} %)"
    );
}

/// Many transactions at a time, which share the waits for the disk.
async fn writers(store: &MysqlStore) {
    let began = Instant::now();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0..TRANSACTIONS / WRITERS {
                let mut connection = store.begin().await.unwrap();
                store.append(&mut connection, &[message(n * WRITERS + writer)]).await.unwrap();
                store.commit(connection).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    say("transactions with a message, 16 at a time", TRANSACTIONS, began);
}

/// Rows that wait.
async fn fill(store: &MysqlStore) {
    for batch in 0..ROWS / 1_000 {
        let messages: Vec<Message> = (0..1_000).map(|n| message(batch * 1_000 + n)).collect();
        let mut connection = store.begin().await.unwrap();
        store.append(&mut connection, &messages).await.unwrap();
        store.commit(connection).await.unwrap();
    }
}

/// What the relay does, without a broker: read, confirm.
async fn read_and_confirm(store: &MysqlStore) {
    let ttl = Duration::from_secs(600);
    let leases = store.acquire("outbox", LANES, LANES, "measured", ttl).await.unwrap();
    drain(store, &leases).await;
    fill(store).await;
    let began = Instant::now();
    let drained = drain(store, &leases).await;
    say("rows read and confirmed", drained, began);
    store.release(&leases).await.unwrap();
}

/// Takes everything.
#[derive(Clone, Default)]
struct Sink(Arc<AtomicUsize>);

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
        self.0.fetch_add(batch.len(), Ordering::Relaxed);
        batch.iter().map(|_| Ok(Receipt)).collect()
    }

    async fn subscribe(&self, _: Subscription) -> Result<Box<dyn Source>, SubscribeError> {
        Err(SubscribeError { context: "nobody reads here".into(), transient: false, source: None })
    }
}

/// The relay itself, to a broker that takes everything; the time ends when the rows are removed.
async fn relay(store: &MysqlStore) {
    fill(store).await;
    let (database, sink) = (Database::new("measured", store.clone()), Sink::default());
    let began = Instant::now();
    let relay = Relay::new(&database, AnyBroker::new(sink.clone()), &Telemetry::new());
    let (handle, shutdown) = ShutdownHandle::new();
    let relay = tokio::spawn(relay.run(shutdown));
    while sink.0.load(Ordering::Relaxed) < ROWS {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    handle.drain(Duration::from_secs(60));
    relay.await.unwrap().unwrap();
    assert_eq!(store.backlog().await.unwrap().0, 0);
    say("rows relayed and removed", ROWS, began);
}

async fn drain(store: &MysqlStore, leases: &[antiphon_outbox::Lease]) -> usize {
    let mut drained = 0;
    let mut positions: Vec<Position> =
        (0..LANES).map(|lane| Position { lane, after: None }).collect();
    loop {
        let rows = store.read(&positions, store.now(), 200).await.unwrap();
        if rows.is_empty() {
            return drained;
        }
        drained += rows.len();
        for row in &rows {
            if let Some(position) = positions.iter_mut().find(|p| p.lane == row.lane) {
                position.after = Some(row.seq);
            }
        }
        let confirmations: Vec<Confirmation> = leases
            .iter()
            .map(|lease| Confirmation {
                lease: lease.clone(),
                rows: rows.iter().filter(|row| row.lane == lease.lane).map(|row| row.seq).collect(),
            })
            .collect();
        store.confirm(&confirmations).await.unwrap();
    }
}

/// Batches of 64, as consumers enter them.
async fn inbox(store: &MysqlStore) {
    let began = Instant::now();
    let batches = TRANSACTIONS / 10;
    for batch in 0..batches {
        let messages: Vec<Message> = (0..64).map(|n| message(batch * 64 + n)).collect();
        let messages: Vec<&Message> = messages.iter().collect();
        let mut connection = store.begin().await.unwrap();
        store.enter(&mut connection, "measured", &messages).await.unwrap();
        store.commit(connection).await.unwrap();
    }
    say("messages entered into the inbox, 64 at a time", batches * 64, began);
}

fn say(what: &str, count: usize, began: Instant) {
    let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    println!("{what}: {:.0}/s", count / began.elapsed().as_secs_f64());
}
