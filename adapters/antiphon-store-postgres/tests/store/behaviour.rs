//! What the store promises beyond its ports, when nothing fails.

use std::time::Duration;

use antiphon_core::{MessageId, Severity, Timestamp};
use antiphon_messaging::Message;
use antiphon_outbox::{InboxEntry, InboxStore, LeaseStore, OutboxStore, Store, StoreError};
use antiphon_store_postgres::{Migration, PostgresStore, Settings};
use sqlx::{Connection as _, PgConnection};
use tokio::time::timeout;

use crate::support::{Database, confirm_all, emit, message, read_all, read_rows};

const PATIENCE: Duration = Duration::from_secs(20);
const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn business_rows_and_messages_commit_together() {
    let database = Database::new().await;
    let store = database.open(Settings::default()).await;
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
    let (first, second) = (message("a"), message("a"));
    store.append(&mut connection, &[first.clone(), second.clone()]).await.unwrap();
    store.commit(connection).await.unwrap();

    assert_eq!(read_all(&store).await, [first, second]);
    let orders: Vec<String> =
        sqlx::query_scalar("SELECT id FROM orders").fetch_all(store.reader()).await.unwrap();
    assert_eq!(orders, ["a"]);
}

#[tokio::test]
async fn texts_are_kept_as_they_are_and_none_becomes_a_statement() {
    let database = Database::new().await;
    let store = database.open(Settings::default()).await;
    let nasty = "it's \\ \"x\"'); DROP TABLE antiphon_outbox; -- $1 \u{1f511}";
    let message = Message {
        topic: nasty.into(),
        kind: nasty.into(),
        source: nasty.into(),
        body: (0..=255).collect::<Vec<u8>>().into(),
        ..message(nasty)
    };
    let mut connection = store.begin().await.unwrap();
    // Even where backslashes mean something in plain texts.
    sqlx::raw_sql("SET LOCAL standard_conforming_strings = off; SET LOCAL backslash_quote = on")
        .execute(&mut *connection)
        .await
        .unwrap();
    store.append(&mut connection, std::slice::from_ref(&message)).await.unwrap();
    store.commit(connection).await.unwrap();
    assert_eq!(read_all(&store).await, std::slice::from_ref(&message));
    let sent = store.sent().await.unwrap();
    assert_eq!((sent[0].topic.as_str(), sent[0].waiting), (nasty, 1));

    let unkept = Message { topic: "zero\0byte".into(), ..message };
    let mut connection = store.begin().await.unwrap();
    let error = store.append(&mut connection, &[unkept]).await.unwrap_err();
    assert!(matches!(error, StoreError::Failed { .. }), "{error}");
}

/// Holds an advisory lock for which transactions that wrote to `slow` wait in their commit.
async fn hold_commits(database: &Database, store: &PostgresStore) -> PgConnection {
    let slow = "CREATE TABLE slow (id int);
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON slow
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()";
    store.migrate("test", &[Migration::new("slow", slow)]).await.unwrap();
    let mut operator = database.connect().await;
    sqlx::raw_sql("SELECT pg_advisory_lock(42)").execute(&mut operator).await.unwrap();
    operator
}

/// Commits a message about `key` whose transaction waits in its commit, after it has drawn its
/// position.
async fn commit_slowly(store: PostgresStore, message: Message) {
    let mut connection = store.begin().await.unwrap();
    sqlx::raw_sql("INSERT INTO slow VALUES (1)").execute(&mut *connection).await.unwrap();
    store.append(&mut connection, &[message]).await.unwrap();
    store.commit(connection).await.unwrap();
}

async fn until_waiting(operator: &mut PgConnection, count: i64) {
    let waiting = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event = 'advisory'";
    let all_wait = async {
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut *operator).await.unwrap() < count
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, all_wait).await.expect("transactions wait");
}

#[tokio::test]
async fn transactions_about_one_key_that_lock_nothing_in_common_are_in_order() {
    let database = Database::new().await;
    let store = database.open(Settings::default()).await;
    let mut operator = hold_commits(&database, &store).await;
    let (first, second, other) = (message("k"), message("k"), message("another key"));
    let slow = tokio::spawn(commit_slowly(store.clone(), first.clone()));
    until_waiting(&mut operator, 1).await;
    let behind = tokio::spawn({
        let (store, second) = (store.clone(), second.clone());
        async move { emit(&store, &[second]).await }
    });
    until_waiting(&mut operator, 2).await;
    // Whoever writes about something else does not wait.
    emit(&store, std::slice::from_ref(&other)).await;
    assert_eq!(read_all(&store).await, std::slice::from_ref(&other));
    sqlx::raw_sql("SELECT pg_advisory_unlock(42)").execute(&mut operator).await.unwrap();
    slow.await.unwrap();
    behind.await.unwrap();
    let rows = read_all(&store).await;
    let of_key: Vec<_> = rows.into_iter().filter(|message| message.key == "k").collect();
    assert_eq!(of_key, [first, second]);
}

#[tokio::test]
async fn without_key_locks_a_late_commit_is_found_by_reading_from_the_beginning() {
    let database = Database::new().await;
    let store = database.open(Settings { key_locks: false, ..Settings::default() }).await;
    let mut operator = hold_commits(&database, &store).await;
    let (late, early) = (message("k"), message("k"));
    let slow = tokio::spawn(commit_slowly(store.clone(), late.clone()));
    until_waiting(&mut operator, 1).await;
    emit(&store, std::slice::from_ref(&early)).await;
    let seen = read_rows(&store).await;
    assert_eq!(seen[0].message, early);
    sqlx::raw_sql("SELECT pg_advisory_unlock(42)").execute(&mut operator).await.unwrap();
    slow.await.unwrap();
    let rows = read_rows(&store).await;
    assert!(rows[0].seq < seen[0].seq, "its position was drawn before");
    assert_eq!(rows.into_iter().map(|row| row.message).collect::<Vec<_>>(), [late, early]);
}

#[tokio::test]
async fn transactions_with_very_many_keys_and_others_lose_nothing() {
    let database = Database::new().await;
    let store = database.open(Settings::default()).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let store = store.clone();
        writers.spawn(async move {
            for _ in 0..5 {
                let count = if writer % 2 == 0 { 300 } else { 3 };
                let messages: Vec<_> = (0..count).map(|n| message(&n.to_string())).collect();
                emit(&store, &messages).await;
            }
        });
    }
    writers.join_all().await;
    assert_eq!(store.backlog().await.unwrap().0, 2 * 5 * 303);
    assert_eq!(read_all(&store).await.len(), 2 * 5 * 303);
}

#[tokio::test]
async fn a_broken_outbox_row_is_put_aside_and_blocks_nobody() {
    let database = Database::new().await;
    let store = database.open(Settings::default()).await;
    emit(&store, &[message("a"), message("a")]).await;
    let mut operator = database.connect().await;
    let damage = "UPDATE antiphon_outbox SET head = '\\xff00'
                   WHERE seq = (SELECT min(seq) FROM antiphon_outbox)";
    sqlx::raw_sql(damage).execute(&mut operator).await.unwrap();
    assert_eq!(read_all(&store).await.len(), 1);
    assert_eq!(read_all(&store).await.len(), 1);
    let buried = store.buried(10).await.unwrap();
    assert_eq!(buried.len(), 1);
    assert!(buried[0].reason.starts_with("decode: "), "{}", buried[0].reason);
    assert_eq!(buried[0].message.body, "body");
}

async fn enter(store: &PostgresStore, messages: &[&Message]) -> Vec<InboxEntry> {
    let mut connection = store.begin().await.unwrap();
    let entries = store.enter(&mut connection, "mail", messages).await.unwrap();
    store.commit(connection).await.unwrap();
    entries
}

async fn inbox_tables(operator: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'antiphon_inbox_%'")
        .fetch_one(operator)
        .await
        .unwrap()
}

fn made_at(time: Timestamp) -> Message {
    Message { id: MessageId::new(time), ..message("a") }
}

#[tokio::test]
async fn an_id_from_the_future_is_refused_and_makes_no_table() {
    let database = Database::new().await;
    let store = database.open(Settings::default()).await;
    let now = store.now();
    // Today, and a clock that is ahead.
    let (today, ahead) = (made_at(now), made_at(now + DAY));
    assert_eq!(enter(&store, &[&today, &ahead]).await, [InboxEntry::New, InboxEntry::New]);
    let mut operator = database.connect().await;
    let tables = inbox_tables(&mut operator).await;
    let future = made_at(now + 3 * DAY);
    let forged = made_at(now + 3_000 * DAY);
    let entries = enter(&store, &[&future, &today, &forged]).await;
    let beyond = InboxEntry::BeyondHorizon;
    assert_eq!(entries, [beyond, InboxEntry::Duplicate, beyond]);
    assert_eq!(inbox_tables(&mut operator).await, tables);
}

#[tokio::test]
async fn a_day_that_is_still_used_is_forgotten_the_next_time_and_refused_from_now_on() {
    let database = Database::new().await;
    let (store, other) =
        (database.open(Settings::default()).await, database.open(Settings::default()).await);
    let now = store.now();
    let old = made_at(now - 8 * DAY);
    let mut open = store.begin().await.unwrap();
    assert_eq!(store.enter(&mut open, "mail", &[&old]).await.unwrap(), [InboxEntry::New]);
    assert_eq!(other.expire(now - 7 * DAY).await.unwrap(), 0, "it is in use");
    store.commit(open).await.unwrap();
    assert_eq!(enter(&store, &[&old]).await, [InboxEntry::BeyondHorizon]);
    assert_eq!(other.expire(now - 7 * DAY).await.unwrap(), 1);
    assert_eq!(enter(&store, &[&old]).await, [InboxEntry::BeyondHorizon]);
    let handled = other.handled().await.unwrap();
    assert_eq!((handled[0].done, handled[0].duplicates), (1, 0));
}

#[tokio::test]
async fn counters_of_connections_that_are_gone_are_added_up() {
    let database = Database::new().await;
    for _ in 0..3 {
        let store = database.open(Settings::default()).await;
        let now = store.now();
        enter(&store, &[&made_at(now), &made_at(now)]).await;
    }
    let mut operator = database.connect().await;
    sqlx::query(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
          WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .execute(&mut operator)
    .await
    .unwrap();
    let store = database.open(Settings::default()).await;
    assert_eq!(store.handled().await.unwrap()[0].done, 6);
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM antiphon_handled")
        .fetch_one(&mut operator)
        .await
        .unwrap();
    assert_eq!(rows, 1);
}

#[tokio::test]
async fn a_commit_wakes_the_relays_of_other_processes() {
    let database = Database::new().await;
    let (store, other) =
        (database.open(Settings::default()).await, database.open(Settings::default()).await);
    // The beginning of listening is a change: nobody knows what was before.
    timeout(PATIENCE, other.changed()).await.expect("listening begins");
    for n in 0..3 {
        emit(&store, &[message(&n.to_string())]).await;
        timeout(PATIENCE, other.changed()).await.expect("the other one is woken");
    }
    // A broken connection is a change as well, and the wake-up works again after it.
    let mut operator = database.connect().await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND query LIKE 'LISTEN%'";
    let ended = sqlx::query(end).execute(&mut operator).await.unwrap().rows_affected();
    assert_eq!(ended, 1);
    timeout(PATIENCE, other.changed()).await.expect("what was missed is looked for");
    let woken = async {
        loop {
            emit(&store, &[message("again")]).await;
            if timeout(Duration::from_millis(500), other.changed()).await.is_ok() {
                return;
            }
        }
    };
    timeout(PATIENCE, woken).await.expect("it listens again");
}

#[tokio::test]
async fn the_time_is_the_databases() {
    let database = Database::new().await;
    let store = database.open(Settings::default()).await;
    let mut operator = database.connect().await;
    let mut ask = async || {
        let micros: i64 =
            sqlx::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1e6)::bigint")
                .fetch_one(&mut operator)
                .await
                .unwrap();
        Timestamp::from_micros(micros)
    };
    let before = ask().await;
    let now = store.now();
    let after = ask().await;
    let error = Duration::from_millis(200);
    assert!(before - error <= now && now <= after + error, "{before:?} {now:?} {after:?}");
}

#[tokio::test]
async fn what_endangers_the_order_is_found() {
    let database = Database::new().await;
    let store = database.open(Settings::default()).await;
    let found = async || store.findings().await;
    let findings = found().await;
    assert!(findings.iter().all(|finding| finding.severity < Severity::Problem), "{findings:?}");
    assert!(findings.iter().any(|finding| finding.subject == "version"));
    assert!(findings.iter().all(|finding| finding.subject != "pooler"), "{findings:?}");
    let mut operator = database.connect().await;
    sqlx::raw_sql("ALTER SEQUENCE antiphon_outbox_seq CACHE 20")
        .execute(&mut operator)
        .await
        .unwrap();
    let findings = found().await;
    let trouble = findings.iter().find(|finding| finding.severity == Severity::Problem).unwrap();
    assert_eq!(trouble.subject, "outbox order");
    assert!(trouble.advice.as_ref().unwrap().contains("ALTER SEQUENCE"));
}

#[tokio::test]
async fn two_that_take_lanes_at_once_share_them() {
    let database = Database::new().await;
    let mut taking = tokio::task::JoinSet::new();
    for n in 0..4 {
        let store = database.open(Settings::default()).await;
        taking.spawn(async move {
            let owner = n.to_string();
            store.acquire("outbox", 16, 8, &owner, Duration::from_secs(60)).await.unwrap()
        });
    }
    let leases: Vec<_> = taking.join_all().await.into_iter().flatten().collect();
    let mut lanes: Vec<_> = leases.iter().map(|lease| lease.lane).collect();
    lanes.sort_unstable();
    lanes.dedup();
    assert_eq!(lanes.len(), leases.len(), "no lane was given twice");
    assert!(lanes.len() >= 8);
}

#[tokio::test]
async fn what_was_published_is_cleared_away_at_once() {
    let database = Database::new().await;
    let store = database.open(Settings::default()).await;
    let messages: Vec<_> = (0..7_000).map(|_| message("")).collect();
    for _ in 0..3 {
        emit(&store, &messages).await;
        confirm_all(&store).await;
    }
    let mut operator = database.connect().await;
    let vacuumed = async {
        let count = "SELECT vacuum_count FROM pg_stat_user_tables
                      WHERE relname = 'antiphon_outbox'";
        while sqlx::query_scalar::<_, i64>(count).fetch_one(&mut operator).await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, vacuumed).await.expect("nobody waits for the server to look");
}
