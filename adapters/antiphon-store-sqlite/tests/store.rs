//! What the store promises beyond its ports: files, migrations, several processes, trouble.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Clock, MessageId, Timestamp};
use antiphon_messaging::Message;
use antiphon_outbox::{
    Confirmation, InboxEntry, InboxStore, LeaseStore, OutboxStore, Position, Store, outbox_lane,
};
use antiphon_store_sqlite::{Migration, OpenError, Settings, SqliteStore};
use bytes::Bytes;
use sqlx::Connection as _;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn location(folder: &TempDir) -> String {
    folder.path().join("data/orders.db").to_str().unwrap().to_owned()
}

async fn open(folder: &TempDir) -> SqliteStore {
    SqliteStore::open(&location(folder), Settings::default()).await.unwrap()
}

fn message(key: &str) -> Message {
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

async fn emit(store: &SqliteStore, messages: &[Message]) {
    let mut connection = store.begin().await.unwrap();
    store.append(&mut connection, messages).await.unwrap();
    store.commit(connection).await.unwrap();
}

async fn read_all(store: &SqliteStore) -> Vec<Message> {
    let positions: Vec<Position> = (0..16).map(|lane| Position { lane, after: None }).collect();
    let rows = store.read(&positions, store.now(), 10_000).await.unwrap();
    rows.into_iter().map(|row| row.message).collect()
}

async fn confirm_all(store: &SqliteStore, lease_owner: &str) {
    let leases =
        store.acquire("outbox", 16, 16, lease_owner, Duration::from_secs(5)).await.unwrap();
    let positions: Vec<Position> = (0..16).map(|lane| Position { lane, after: None }).collect();
    let rows = store.read(&positions, store.now(), 10_000).await.unwrap();
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

#[tokio::test]
async fn business_rows_and_messages_commit_together() {
    let folder = folder();
    let store = open(&folder).await;
    let migrations = [Migration::new("0001-orders", "CREATE TABLE orders (id TEXT PRIMARY KEY)")];
    store.migrate("orders", &migrations).await.unwrap();

    let mut connection = store.begin().await.unwrap();
    sqlx::query("INSERT INTO orders VALUES ('a')").execute(&mut *connection).await.unwrap();
    store.append(&mut connection, &[message("a"), message("b")]).await.unwrap();
    drop(connection);
    assert!(read_all(&store).await.is_empty());

    let mut connection = store.begin().await.unwrap();
    let mut savepoint = connection.begin().await.unwrap();
    sqlx::query("INSERT INTO orders VALUES ('lost')").execute(&mut *savepoint).await.unwrap();
    savepoint.rollback().await.unwrap();
    sqlx::query("INSERT INTO orders VALUES ('a')").execute(&mut *connection).await.unwrap();
    let (first, second) = (message("a"), message("b"));
    store.append(&mut connection, &[first.clone(), second.clone()]).await.unwrap();
    store.commit(connection).await.unwrap();

    assert_eq!(read_all(&store).await, [first, second]);
    let orders: Vec<String> =
        sqlx::query_scalar("SELECT id FROM orders").fetch_all(store.reader()).await.unwrap();
    assert_eq!(orders, ["a"]);
}

#[tokio::test]
async fn positions_are_not_used_twice_when_the_outbox_was_empty_in_between() {
    let folder = folder();
    let store = open(&folder).await;
    emit(&store, &[message("a"), message("a")]).await;
    let lane = outbox_lane(&message("a"));
    let positions = [Position { lane, after: None }];
    let last = store.read(&positions, store.now(), 10).await.unwrap()[1].seq;
    confirm_all(&store, "one").await;
    assert_eq!(store.backlog().await.unwrap(), (0, None));
    emit(&store, &[message("a")]).await;
    let after = [Position { lane, after: Some(last) }];
    assert_eq!(store.read(&after, store.now(), 10).await.unwrap().len(), 1);
    let sent = store.sent().await.unwrap();
    assert_eq!((sent[0].committed, sent[0].waiting), (3, 1));
}

#[tokio::test]
async fn a_broken_outbox_row_is_put_aside_and_blocks_nobody() {
    let folder = folder();
    let store = open(&folder).await;
    emit(&store, &[message("a"), message("a")]).await;
    let mut connection = store.begin().await.unwrap();
    sqlx::query("UPDATE antiphon_outbox SET head = x'ff00' WHERE seq = 1")
        .execute(&mut *connection)
        .await
        .unwrap();
    store.commit(connection).await.unwrap();
    assert_eq!(read_all(&store).await.len(), 1);
    assert_eq!(read_all(&store).await.len(), 1);
    let buried = store.buried(10).await.unwrap();
    assert_eq!(buried.len(), 1);
    assert!(buried[0].reason.starts_with("decode: "), "{}", buried[0].reason);
    assert_eq!(buried[0].message.body, "body");
}

#[tokio::test]
async fn eight_programs_that_start_at_once_migrate_once() {
    let folder = folder();
    let location = location(&folder);
    let migrations = Arc::new([
        Migration::new(
            "0001-orders",
            "CREATE TABLE orders (id TEXT); INSERT INTO orders VALUES ('x')",
        ),
        Migration::new("0002-index", "CREATE INDEX orders_id ON orders (id)"),
    ]);
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (location, migrations) = (location.clone(), Arc::clone(&migrations));
        opening.spawn(async move {
            let store = SqliteStore::open(&location, Settings::default()).await.unwrap();
            store.migrate("orders", migrations.as_slice()).await.unwrap();
            store
        });
    }
    let stores = opening.join_all().await;
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM orders")
        .fetch_one(stores[0].reader())
        .await
        .unwrap();
    assert_eq!(count, 1);
}

#[tokio::test]
async fn migrations_that_do_not_fit_are_refused_and_change_nothing() {
    let folder = folder();
    let store = open(&folder).await;
    let one = Migration::new("0001", "CREATE TABLE one (id)");
    let two = Migration::new("0002", "CREATE TABLE two (id)");
    store.migrate("orders", &[one.clone(), two.clone()]).await.unwrap();

    let newer = store.migrate("orders", std::slice::from_ref(&one)).await.unwrap_err();
    assert!(matches!(newer, OpenError::Newer { .. }), "{newer}");
    assert!(newer.to_string().contains("newer version"), "{newer}");

    let changed = Migration::new("0002", "CREATE TABLE two (id, name)");
    let changed = store.migrate("orders", &[one.clone(), changed]).await.unwrap_err();
    assert!(matches!(changed, OpenError::Changed { .. }), "{changed}");

    let three = Migration::new("0003", "CREATE TABLE three (id)");
    let wrong = Migration::new("0004", "CREATE TABEL four (id)");
    let failed = store.migrate("orders", &[one, two, three, wrong]).await.unwrap_err();
    assert!(matches!(&failed, OpenError::Migration { name, .. } if name == "0004"), "{failed}");
    let three = sqlx::query("SELECT * FROM three").fetch_all(store.reader()).await;
    assert!(three.is_err(), "a failed migration must undo the ones before it");
}

#[tokio::test]
async fn a_database_of_a_newer_framework_is_refused() {
    let folder = folder();
    let store = open(&folder).await;
    let mut connection = store.begin().await.unwrap();
    sqlx::query("UPDATE antiphon_schema SET version = 99").execute(&mut *connection).await.unwrap();
    store.commit(connection).await.unwrap();
    let error = SqliteStore::open(&location(&folder), Settings::default()).await.unwrap_err();
    assert!(matches!(error, OpenError::Newer { .. }), "{error}");
}

#[tokio::test]
async fn what_cannot_be_opened_is_refused_with_the_reason() {
    let folder = folder();
    let file = folder.path().join("file");
    std::fs::write(
        &file,
        "not a database, but long enough to be looked at as if it were one: ".repeat(20),
    )
    .unwrap();
    let open =
        async |path: String| SqliteStore::open(&path, Settings::default()).await.unwrap_err();

    let error = open(format!("{}/below/a.db", file.display())).await;
    assert!(matches!(error, OpenError::Folder { .. }), "{error}");
    let error = open(file.display().to_string()).await;
    assert!(matches!(error, OpenError::NotADatabase { .. }), "{error}");
    let error = open(folder.path().display().to_string()).await;
    assert!(matches!(error, OpenError::Location { .. }), "{error}");
    // The tests may run as root, whom permissions do not stop: a device does.
    let error = open("/proc/antiphon.db".to_owned()).await;
    assert!(matches!(error, OpenError::Permission { .. }), "{error}");
}

#[tokio::test]
async fn two_stores_on_one_file_take_turns() {
    let folder = folder();
    let stores = [open(&folder).await, open(&folder).await];
    let migrations =
        [Migration::new("1", "CREATE TABLE counter (n); INSERT INTO counter VALUES (0)")];
    stores[0].migrate("s", &migrations).await.unwrap();
    let mut work = tokio::task::JoinSet::new();
    for n in 0..16 {
        let store = stores[n % 2].clone();
        work.spawn(async move {
            for _ in 0..25 {
                let mut connection = store.begin().await.unwrap();
                let value: i64 = sqlx::query_scalar("SELECT n FROM counter")
                    .fetch_one(&mut *connection)
                    .await
                    .unwrap();
                sqlx::query("UPDATE counter SET n = ?")
                    .bind(value + 1)
                    .execute(&mut *connection)
                    .await
                    .unwrap();
                store.append(&mut connection, &[message("k")]).await.unwrap();
                store.commit(connection).await.unwrap();
            }
        });
    }
    work.join_all().await;
    let value: i64 =
        sqlx::query_scalar("SELECT n FROM counter").fetch_one(stores[1].reader()).await.unwrap();
    assert_eq!(value, 400);
    assert_eq!(stores[0].backlog().await.unwrap().0, 400);
}

#[tokio::test]
async fn a_turn_that_never_comes_is_busy_and_a_dropped_one_comes_back() {
    let folder = folder();
    let settings = Settings { busy_timeout: Duration::from_millis(50), ..Settings::default() };
    let store = SqliteStore::open(&location(&folder), settings.clone()).await.unwrap();
    let other = SqliteStore::open(&location(&folder), settings).await.unwrap();
    let held = store.begin().await.unwrap();
    assert!(store.begin().await.is_err_and(|error| error.is_busy()));
    assert!(other.begin().await.is_err_and(|error| error.is_busy()));
    drop(held);
    let again = other.begin().await.unwrap();
    other.commit(again).await.unwrap();
    // A transaction that SQLite has ended by itself must not wedge the writer.
    let mut ended = store.begin().await.unwrap();
    sqlx::raw_sql("ROLLBACK").execute(&mut *ended).await.unwrap();
    drop(ended);
    let fine = store.begin().await.unwrap();
    store.commit(fine).await.unwrap();
}

#[tokio::test]
async fn a_beginning_that_is_given_up_leaves_no_transaction_behind() {
    let folder = folder();
    let store = open(&folder).await;
    for delay in 0..40_u64 {
        let begin = store.begin();
        let _ = tokio::time::timeout(Duration::from_micros(delay * 10), begin).await;
    }
    emit(&store, &[message("a")]).await;
    let other = open(&folder).await;
    emit(&other, &[message("b")]).await;
    assert_eq!(read_all(&store).await.len(), 2);
}

#[tokio::test]
async fn the_inbox_counts_and_forgets_up_to_its_horizon() {
    let folder = folder();
    let store = open(&folder).await;
    let (one, two) = (message("a"), message("b"));
    let old = Message { id: MessageId::new(Timestamp::from_millis(1_000)), ..message("c") };
    let mut connection = store.begin().await.unwrap();
    let entries = store.enter(&mut connection, "billing", &[&one, &two, &one]).await.unwrap();
    assert_eq!(entries, [InboxEntry::New, InboxEntry::New, InboxEntry::Duplicate]);
    store.commit(connection).await.unwrap();
    assert_eq!(store.expire(Timestamp::from_millis(2_000)).await.unwrap(), 0);
    let mut connection = store.begin().await.unwrap();
    let entries = store.enter(&mut connection, "billing", &[&old, &two]).await.unwrap();
    assert_eq!(entries, [InboxEntry::BeyondHorizon, InboxEntry::Duplicate]);
    store.commit(connection).await.unwrap();
    let handled = store.handled().await.unwrap();
    assert_eq!((handled[0].done, handled[0].duplicates), (2, 2));
    let later = store.now() + Duration::from_secs(1);
    assert_eq!(store.expire(later).await.unwrap(), 2);
}
