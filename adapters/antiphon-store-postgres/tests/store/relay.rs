//! A relay on the store, while several processes write and connections end: everything that was
//! committed is published, and the messages of each key in the order of their commits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use antiphon_core::{Component, ShutdownHandle};
use antiphon_messaging::{
    AnyBroker, Broker, Capabilities, Durability, Message, PublishError, Receipt, Source,
    SubscribeError, Subscription, Topology,
};
use antiphon_outbox::{Database, OutboxStore, Relay};
use antiphon_store_postgres::{Migration, PostgresStore, Settings};
use antiphon_telemetry::Telemetry;
use parking_lot::Mutex;
use sqlx::Row;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{self, message};

const PATIENCE: Duration = Duration::from_secs(60);

/// Writes down what it gets.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Message>>>);

impl Broker for Recorder {
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
        let count = batch.len();
        self.0.lock().extend(batch);
        std::iter::repeat_with(|| Ok(Receipt)).take(count).collect()
    }

    async fn subscribe(&self, _: Subscription) -> Result<Box<dyn Source>, SubscribeError> {
        Err(SubscribeError { context: "nobody reads here".into(), transient: false, source: None })
    }
}

fn start(database: &Database<PostgresStore>, broker: &Recorder) -> ShutdownHandle {
    let relay = Relay::new(database, AnyBroker::new(broker.clone()), &Telemetry::new());
    let (handle, shutdown) = ShutdownHandle::new();
    tokio::spawn(relay.run(shutdown));
    handle
}

/// Takes the next version of `key` and says so; now and then it changes its mind.
async fn step(
    database: &Database<PostgresStore>,
    key: &str,
    writer: usize,
    n: usize,
) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let mut tx = database.begin().await.map_err(|error| failed(&error))?;
    let version: i64 = sqlx::query_scalar(
        "INSERT INTO versions AS v (key, version) VALUES ($1, 1)
         ON CONFLICT (key) DO UPDATE SET version = v.version + 1 RETURNING version",
    )
    .bind(key)
    .fetch_one(tx.sql())
    .await
    .map_err(|error| failed(&error))?;
    sqlx::query("INSERT INTO done (key, version) VALUES ($1, $2)")
        .bind(key)
        .bind(version)
        .execute(tx.sql())
        .await
        .map_err(|error| failed(&error))?;
    tx.push(Message { body: version.to_string().into(), ..message(key) });
    if (n + writer) % 7 == 3 {
        // Undone, with its version and its message.
        return Ok(());
    }
    tx.commit().await.map_err(|error| failed(&error))
}

fn version(message: &Message) -> i64 {
    std::str::from_utf8(&message.body).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_committed_while_connections_end_is_published_in_order() {
    const WRITERS: usize = 6;
    const BITES: usize = 10;
    /// How many steps end before connections are cut again: most of them well.
    const STEPS: u32 = 24;
    let temporary = support::Database::new().await;
    // Many processes that write, and one with the relay. All of them are cut off at times.
    let store = temporary.open(Settings::default()).await;
    let tables = "CREATE TABLE versions (key text PRIMARY KEY, version bigint NOT NULL);
                  CREATE TABLE done (key text, version bigint, PRIMARY KEY (key, version))";
    store.migrate("test", &[Migration::new("tables", tables)]).await.unwrap();
    let broker = Recorder::default();
    let relaying = Database::new("orders", store.clone());
    let handle = start(&relaying, &broker);

    let failed = Arc::new(AtomicUsize::new(0));
    let ended = Arc::new(Semaphore::new(0));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = temporary.open(Settings::default()).await;
        let (failed, ended) = (failed.clone(), ended.clone());
        writers.spawn(async move {
            let database = Database::new("orders", store);
            for n in 0.. {
                let key = format!("key-{}", (n * 5 + writer) % 8);
                let failed = match step(&database, &key, writer, n).await {
                    Ok(()) => failed.load(Ordering::Relaxed),
                    Err(_) => failed.fetch_add(1, Ordering::Relaxed) + 1,
                };
                ended.add_permits(1);
                if failed >= BITES {
                    return;
                }
            }
        });
    }
    let mut operator = temporary.connect().await;
    let cut = async {
        while failed.load(Ordering::Relaxed) < BITES {
            // Every connection in turn, the relay's too, but mostly those within a transaction.
            sqlx::query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                  WHERE datname = current_database() AND pid <> pg_backend_pid()
                  ORDER BY random() * CASE WHEN xact_start IS NULL THEN 2 ELSE 1 END LIMIT 2",
            )
            .execute(&mut operator)
            .await
            .unwrap();
            tokio::select! {
                steps = ended.acquire_many(STEPS) => steps.unwrap().forget(),
                Some(written) = writers.join_next() => written.unwrap(),
            }
        }
    };
    timeout(PATIENCE, cut).await.expect("steps fail, since their connections end");
    timeout(PATIENCE, writers.join_all()).await.expect("the writers end");

    let drained = async {
        loop {
            match store.backlog().await {
                Ok((0, _)) => return,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(PATIENCE, drained).await.expect("everything is published");
    handle.drain(Duration::from_secs(5));

    let committed: BTreeSet<(String, i64)> = sqlx::query("SELECT key, version FROM done")
        .fetch_all(&mut operator)
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let published = broker.0.lock().clone();
    let mut first: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for message in &published {
        let version = version(message);
        if seen.insert((message.key.clone(), version)) {
            first.entry(message.key.clone()).or_default().push(version);
        }
    }
    assert_eq!(seen, committed, "what was committed was published, and nothing else");
    for (key, versions) in first {
        assert!(versions.is_sorted(), "{key} is out of order: {versions:?}");
    }
    let sent = store.sent().await.unwrap();
    let count = u64::try_from(committed.len()).unwrap();
    assert_eq!((sent[0].committed, sent[0].waiting), (count, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_with_a_long_poll_is_woken_by_another_process() {
    let temporary = support::Database::new().await;
    let (store, other) =
        (temporary.open(Settings::default()).await, temporary.open(Settings::default()).await);
    let broker = Recorder::default();
    let relaying = Database::new("orders", store.clone());
    let settings = antiphon_outbox::RelaySettings {
        // Nobody looks by itself while this test runs.
        poll_min: PATIENCE * 2,
        poll_max: PATIENCE * 2,
        sweep_interval: PATIENCE * 2,
        ..antiphon_outbox::RelaySettings::default()
    };
    let relay = Relay::new(&relaying, AnyBroker::new(broker.clone()), &Telemetry::new())
        .with_settings(settings);
    let (_handle, shutdown) = ShutdownHandle::new();
    tokio::spawn(relay.run(shutdown));
    // It listens before it has its lanes, which it reads first of all.
    let published = async |count: usize| {
        let all = async {
            while broker.0.lock().len() < count {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, all).await.is_ok()
    };
    let elsewhere = Database::new("orders", other);
    for count in 1..=5 {
        let mut tx = elsewhere.begin().await.unwrap();
        tx.push(message("k"));
        tx.commit().await.unwrap();
        assert!(published(count).await, "message {count} was not published");
    }
}
