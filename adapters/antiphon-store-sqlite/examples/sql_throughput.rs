//! Measures the SQL broker and what the outbox costs a transaction. Release builds only make sense:
//!
//! `cargo run --release -p antiphon-store-sqlite --example sql_throughput [broker|outbox|latency]`

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for one's own eyes")]

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_core::{Clock, MessageId};
use antiphon_messaging::{
    Broker, Delivery, Fetched, Group, Message, Settlement, Source, Start, Subscription, Topology,
    settle_all,
};
use antiphon_outbox::{OutboxStore, Store};
use antiphon_store_sqlite::{Connection, Migration, Settings, SqliteBroker, SqliteStore};
use tokio::time::Instant;

const BATCH: usize = 256;
const MESSAGES: usize = 400_000;
const TRANSACTIONS: usize = 4_000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let wanted = std::env::args().nth(1);
    let wants = |name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    let folder = tempfile::tempdir_in(".").unwrap();
    if wants("broker") {
        for _ in 0..3 {
            let location = folder.path().join(format!("{}.db", unique_name()));
            broker(location.to_str().unwrap()).await;
        }
    }
    if wants("latency") {
        latency(folder.path().join("latency.db").to_str().unwrap()).await;
    }
    if wants("outbox") {
        outbox(folder.path().join("outbox.db").to_str().unwrap()).await;
    }
}

fn unique_name() -> String {
    MessageId::new(Clock::system().now()).to_string()
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
        body: vec![7_u8; 100].into(),
    }
}

async fn open(location: &str) -> (SqliteBroker, Box<dyn Source>) {
    let broker = SqliteBroker::open(location, Settings::default()).await.unwrap();
    let (topics, start) = (vec!["orders".to_owned()], Start::Earliest);
    let group = Group { name: "billing".into(), topics, start, ordered: true };
    let topology = Topology { topics: vec!["orders".into()], groups: vec![group] };
    broker.declare(&topology).await.unwrap();
    let subscription =
        Subscription { group: "billing".into(), topics: vec!["orders".into()], ordered: true };
    let source = broker.subscribe(subscription).await.unwrap();
    (broker, source)
}

async fn fetch(source: &mut Box<dyn Source>, credits: usize) -> Vec<Delivery> {
    loop {
        match source.fetch(credits).await {
            Fetched::Deliveries(deliveries) => return deliveries,
            Fetched::Revoked { done, .. } => drop(done),
            Fetched::Lost(reason) => unreachable!("{reason}"),
        }
    }
}

/// Publishes in batches and consumes at the same time; each message is acknowledged.
async fn broker(location: &str) {
    let (broker, mut source) = open(location).await;
    let begun = Instant::now();
    let publishing = tokio::spawn(async move {
        for start in (0..MESSAGES).step_by(BATCH) {
            let batch = (start..(start + BATCH).min(MESSAGES)).map(message).collect();
            assert!(broker.publish(batch).await.iter().all(Result::is_ok));
        }
        begun.elapsed()
    });
    let mut handled = 0;
    while handled < MESSAGES {
        let deliveries = fetch(&mut source, BATCH).await;
        handled += deliveries.len();
        let settled = settle_all(deliveries.into_iter().map(|d| (d, Settlement::Ack)).collect());
        drop(settled);
    }
    let (all, published) = (begun.elapsed(), publishing.await.unwrap());
    source.close().await;
    println!(
        "broker, batches of {BATCH}, synchronous=NORMAL: {:.0} messages/s end to end \
         ({:.0} published/s)",
        rate(MESSAGES, all),
        rate(MESSAGES, published),
    );
}

fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// One message at a time, idle in between.
async fn latency(location: &str) {
    let (broker, mut source) = open(location).await;
    let other = SqliteBroker::open(location, Settings::default()).await.unwrap();
    for (name, broker) in [("the same process", broker), ("another process", other)] {
        let mut times = Vec::new();
        for n in 0..300 {
            tokio::time::sleep(Duration::from_millis(3)).await;
            let begun = Instant::now();
            assert!(broker.publish(vec![message(n)]).await[0].is_ok());
            for delivery in fetch(&mut source, 1).await {
                times.push(begun.elapsed());
                drop(delivery.settle(Settlement::Ack));
            }
        }
        print("publish to delivery, ".to_owned() + name, times);
    }
}

fn print(what: String, mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("{what}: p50 {p50:?}, p99 {p99:?}");
    p50
}

/// A transaction of three statements, with and without a message, in turns.
async fn outbox(location: &str) {
    let store = SqliteStore::open(location, Settings::default()).await.unwrap();
    let tables = "
        CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, status TEXT, total INTEGER);
        CREATE TABLE stock (sku INTEGER PRIMARY KEY, on_hand INTEGER);
        INSERT INTO stock VALUES (1, 1000000);";
    store.migrate("bench", &[Migration::new("1", tables)]).await.unwrap();
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for n in 0..TRANSACTIONS {
        let begun = Instant::now();
        let connection = business(&store, n).await;
        store.commit(connection).await.unwrap();
        without.push(begun.elapsed());

        let message = message(n);
        let begun = Instant::now();
        let mut connection = business(&store, n).await;
        store.append(&mut connection, std::slice::from_ref(&message)).await.unwrap();
        store.commit(connection).await.unwrap();
        with.push(begun.elapsed());
    }
    let without = print("transaction of three statements".into(), without);
    let with = print("the same with one message in the outbox".into(), with);
    println!(
        "the outbox adds {:+.1} % p50",
        (with.as_secs_f64() / without.as_secs_f64() - 1.0) * 100.0
    );
}

async fn business(store: &SqliteStore, n: usize) -> Connection {
    let mut connection = store.begin().await.unwrap();
    let id = sqlx::query("INSERT INTO orders (customer, status, total) VALUES (?, 'PENDING', ?)")
        .bind(format!("customer-{n}"))
        .bind(1_999_i64)
        .execute(&mut *connection)
        .await
        .unwrap()
        .last_insert_rowid();
    sqlx::query("UPDATE stock SET on_hand = on_hand - 1 WHERE sku = 1 AND on_hand > 0")
        .execute(&mut *connection)
        .await
        .unwrap();
    sqlx::query("UPDATE orders SET status = 'CONFIRMED' WHERE id = ?")
        .bind(id)
        .execute(&mut *connection)
        .await
        .unwrap();
    connection
}
