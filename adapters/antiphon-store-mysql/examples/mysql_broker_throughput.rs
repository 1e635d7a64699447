//! Measures the SQL broker on MariaDB, durable. Release builds only make sense:
//!
//! `cargo run --release -p antiphon-store-mysql --example mysql_broker_throughput [batched|single|latency]`
//!
//! The server is the one of `cargo xtask services up mariadb`, in a database that is made and dropped.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for one's own eyes")]

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_core::{Clock, MessageId};
use antiphon_messaging::{
    Broker, Delivery, Fetched, Group, Message, Settlement, Source, Start, Subscription, Topology,
    settle_all,
};
use antiphon_store_mysql::{MysqlBroker, Settings};
use antiphon_testing::services::Service;
use sqlx::{AssertSqlSafe, Connection, MySqlConnection};
use tokio::time::Instant;

const BATCH: usize = 256;
/// Batches on their way at a time.
const WINDOW: usize = 4;
/// Publishers that send one message and wait for its confirmation.
const SINGLES: usize = 64;
const MESSAGES: usize = 200_000;
const UNBATCHED: usize = 50_000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let wanted = std::env::args().nth(1);
    let wants = |name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    let name = format!("antiphon_bench_{}", std::process::id());
    let server = Service::Mariadb.url();
    let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
    if wants("batched") {
        for _ in 0..3 {
            measure(&url, "batches of 256, 4 at a time", MESSAGES, BATCH, WINDOW).await;
        }
    }
    if wants("single") {
        for _ in 0..3 {
            measure(&url, "one by one, 64 publishers", UNBATCHED, 1, SINGLES).await;
        }
    }
    if wants("latency") {
        latency(&url).await;
    }
    let mut server = MySqlConnection::connect(&server).await.unwrap();
    let drop_it = AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name}"));
    sqlx::raw_sql(drop_it).execute(&mut server).await.unwrap();
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

async fn open(url: &str) -> (MysqlBroker, Box<dyn Source>) {
    let broker = MysqlBroker::open(url, Settings::default()).await.unwrap();
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

/// Publishes and consumes at the same time; each message is confirmed and acknowledged.
async fn measure(url: &str, how: &str, messages: usize, batch: usize, window: usize) {
    let (broker, mut source) = open(url).await;
    let begun = Instant::now();
    let publishers = (0..window).map(|publisher| {
        let broker = broker.clone();
        tokio::spawn(async move {
            for start in (publisher * batch..messages).step_by(batch * window) {
                let batch = (start..(start + batch).min(messages)).map(message).collect();
                assert!(broker.publish(batch).await.iter().all(Result::is_ok));
            }
            begun.elapsed()
        })
    });
    let publishers: Vec<_> = publishers.collect();
    let mut handled = 0;
    while handled < messages {
        let deliveries = fetch(&mut source, 512).await;
        handled += deliveries.len();
        let settled = settle_all(deliveries.into_iter().map(|d| (d, Settlement::Ack)).collect());
        drop(settled);
    }
    let all = begun.elapsed();
    let mut published = Duration::ZERO;
    for publisher in publishers {
        published = published.max(publisher.await.unwrap());
    }
    source.close().await;
    println!(
        "broker, {how}, flush at each commit: {:.0} messages/s end to end ({:.0} published/s)",
        rate(messages, all),
        rate(messages, published),
    );
}

fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// One message at a time, idle in between.
async fn latency(url: &str) {
    let (broker, mut source) = open(url).await;
    let other = MysqlBroker::open(url, Settings::default()).await.unwrap();
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
        times.sort_unstable();
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("publish to delivery, {name}: p50 {p50:?}, p99 {p99:?}");
    }
    source.close().await;
}
