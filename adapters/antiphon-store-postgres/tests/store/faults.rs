//! Trouble: connections that end, answers that get lost, transactions that wait.

use std::time::Duration;

use antiphon_core::Severity;
use antiphon_outbox::{
    CommitError, InboxEntry, InboxStore, LeaseStore, OutboxStore, Store, StoreError,
};
use antiphon_store_postgres::{PostgresStore, Settings};
use antiphon_testing::proxy::{Faults, Proxy, Way};
use sqlx::{Connection as _, PgConnection};

use crate::support::{Database, emit, emit_in, message, read_all};

/// Ends every connection to the database but the one that says so.
async fn end_all(connection: &mut PgConnection) {
    sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .execute(connection)
    .await
    .unwrap();
}

async fn pid(connection: &mut PgConnection) -> i32 {
    sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(connection).await.unwrap()
}

#[tokio::test]
async fn a_connection_that_ends_in_the_middle_leaves_nothing_and_the_next_one_works() {
    let database = Database::new().await;
    let store = database.open(Settings::default()).await;
    let mut operator = database.connect().await;
    let mut connection = store.begin().await.unwrap();
    sqlx::raw_sql("CREATE TABLE half (id TEXT)").execute(&mut *connection).await.unwrap();
    store.append(&mut connection, &[message("a")]).await.unwrap();
    end_all(&mut operator).await;
    // The server has ended it, but nobody can tell that from an end after the commit.
    let error = store.commit(connection).await.unwrap_err();
    assert!(matches!(error, CommitError::Unknown(_)), "{error}");
    assert!(read_all(&store).await.is_empty());
    emit(&store, &[message("b")]).await;
    assert_eq!(read_all(&store).await.len(), 1);
    let half = sqlx::query("SELECT * FROM half").fetch_all(&mut operator).await;
    assert!(half.is_err(), "half a transaction must be undone");
}

#[tokio::test]
async fn idle_connections_that_the_server_has_ended_are_noticed_by_nobody() {
    let database = Database::new().await;
    let store = database.open(Settings::default()).await;
    let (one, two) = (store.begin().await.unwrap(), store.begin().await.unwrap());
    store.commit(one).await.unwrap();
    store.commit(two).await.unwrap();
    end_all(&mut database.connect().await).await;
    for n in 0..3 {
        emit(&store, &[message(&n.to_string())]).await;
    }
    // What reads by itself fails once at most, and then again connects.
    if store.backlog().await.is_err() {
        assert_eq!(store.backlog().await.unwrap().0, 3);
    }
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_unknown_and_was_done() {
    let database = Database::new().await;
    let proxy = Proxy::in_front_of(&database.url()).await.unwrap();
    let store = PostgresStore::open(proxy.url(), Settings::default()).await.unwrap();
    let direct = database.open(Settings::default()).await;
    let mut connection = store.begin().await.unwrap();
    let sent = message("a");
    store.append(&mut connection, std::slice::from_ref(&sent)).await.unwrap();
    let cut = Way { cut_after: Some(0), ..Way::default() };
    proxy.set(Faults { to_client: cut, ..Faults::default() });
    let error = store.commit(connection).await.unwrap_err();
    assert!(matches!(error, CommitError::Unknown(_)), "{error}");
    assert!(proxy.counts().cut > 0, "the fault bit");
    proxy.heal();
    assert_eq!(read_all(&direct).await, [sent]);
    emit(&store, &[message("b")]).await;
    assert_eq!(read_all(&direct).await.len(), 2);
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_for_a_while_is_no_commit() {
    let database = Database::new().await;
    let proxy = Proxy::in_front_of(&database.url()).await.unwrap();
    let settings = Settings { acquire_timeout: Duration::from_millis(300), ..Settings::default() };
    let store = PostgresStore::open(proxy.url(), settings).await.unwrap();
    proxy.set(Faults { refuse: true, ..Faults::default() });
    proxy.reset();
    let error = store.begin().await.unwrap_err();
    assert!(matches!(error, StoreError::Failed { .. }), "{error}");
    let findings = store.findings().await;
    assert!(findings.iter().any(|finding| finding.severity == Severity::Problem), "{findings:?}");
    proxy.heal();
    emit(&store, &[message("a")]).await;
}

#[tokio::test]
async fn a_failed_statement_that_was_ignored_is_not_reported_as_committed() {
    let database = Database::new().await;
    let store = database.open(Settings::default()).await;
    let mut connection = store.begin().await.unwrap();
    sqlx::raw_sql("SELECT 1/0").execute(&mut *connection).await.unwrap_err();
    let error = store.commit(connection).await.unwrap_err();
    assert!(matches!(error, CommitError::RolledBack(_)), "{error}");
    // With messages as well.
    let mut connection = store.begin().await.unwrap();
    sqlx::raw_sql("SELECT 1/0").execute(&mut *connection).await.unwrap_err();
    store.append(&mut connection, &[message("a")]).await.unwrap();
    let error = store.commit(connection).await.unwrap_err();
    assert!(matches!(error, CommitError::RolledBack(_)), "{error}");
    assert!(read_all(&store).await.is_empty());
}

#[tokio::test]
async fn a_deferred_constraint_fails_the_commit_and_its_messages() {
    let database = Database::new().await;
    let store = database.open(Settings::default()).await;
    let mut connection = store.begin().await.unwrap();
    sqlx::raw_sql(
        "CREATE TABLE parent (id int PRIMARY KEY);
         CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
    )
    .execute(&mut *connection)
    .await
    .unwrap();
    store.commit(connection).await.unwrap();
    let mut connection = store.begin().await.unwrap();
    sqlx::raw_sql("INSERT INTO child VALUES (1)").execute(&mut *connection).await.unwrap();
    store.append(&mut connection, &[message("a")]).await.unwrap();
    let error = store.commit(connection).await.unwrap_err();
    assert!(matches!(error, CommitError::RolledBack(_)), "{error}");
    assert!(read_all(&store).await.is_empty());
    emit(&store, &[message("b")]).await;
    assert_eq!(read_all(&store).await.len(), 1);
}

#[tokio::test]
async fn a_transaction_that_its_own_statement_ended_wedges_nobody() {
    let database = Database::new().await;
    let settings = Settings { connections_max: 1, ..Settings::default() };
    let store = database.open(settings).await;
    let mut ended = store.begin().await.unwrap();
    sqlx::raw_sql("COMMIT").execute(&mut *ended).await.unwrap();
    let error = store.commit(ended).await.unwrap_err();
    assert!(matches!(error, CommitError::Unknown(_)), "{error}");
    let mut dropped = store.begin().await.unwrap();
    sqlx::raw_sql("ROLLBACK").execute(&mut *dropped).await.unwrap();
    drop(dropped);
    emit(&store, &[message("a")]).await;
    assert_eq!(read_all(&store).await.len(), 1);
}

#[tokio::test]
async fn no_free_connection_is_busy_and_a_dropped_one_comes_back() {
    let database = Database::new().await;
    let settings = Settings {
        connections_max: 1,
        acquire_timeout: Duration::from_millis(500),
        ..Settings::default()
    };
    let store = database.open(settings).await;
    let mut held = store.begin().await.unwrap();
    let first = pid(&mut held).await;
    assert!(store.begin().await.is_err_and(|error| error.is_busy()));
    // What the framework does by itself does not wait for users' transactions.
    assert_eq!(
        store.acquire("outbox", 16, 16, "relay", Duration::from_secs(5)).await.unwrap().len(),
        16
    );
    drop(held);
    let mut again = store.begin().await.unwrap();
    assert_eq!(pid(&mut again).await, first, "its connection was cleaned and kept");
}

#[tokio::test]
async fn whatever_is_given_up_leaves_no_transaction_behind() {
    let database = Database::new().await;
    let settings = Settings { connections_max: 2, ..Settings::default() };
    let store = database.open(settings).await;
    for delay in 0..30_u64 {
        let work = async {
            let mut connection = store.begin().await.unwrap();
            emit_in(&store, &mut connection).await;
            store.commit(connection).await.unwrap();
        };
        let _ = tokio::time::timeout(Duration::from_micros(delay * 100), work).await;
    }
    emit(&store, &[message("last")]).await;
    let open = "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND backend_xid IS NOT NULL";
    let mut operator = database.connect().await;
    let is_clean = async {
        while sqlx::query_scalar::<_, i64>(open).fetch_one(&mut operator).await.unwrap() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), is_clean).await.expect("nothing stays open");
}

#[tokio::test]
async fn a_message_that_another_transaction_is_handling_is_busy() {
    let database = Database::new().await;
    let settings = Settings { lock_timeout: Duration::from_millis(100), ..Settings::default() };
    let store = database.open(settings).await;
    let message = message("a");
    let mut first = store.begin().await.unwrap();
    assert_eq!(store.enter(&mut first, "mail", &[&message]).await.unwrap(), [InboxEntry::New]);
    let mut second = store.begin().await.unwrap();
    let error = store.enter(&mut second, "mail", &[&message]).await.unwrap_err();
    assert!(error.is_busy(), "{error}");
    drop(second);
    store.commit(first).await.unwrap();
    let mut third = store.begin().await.unwrap();
    let entries = store.enter(&mut third, "mail", &[&message]).await.unwrap();
    assert_eq!(entries, [InboxEntry::Duplicate]);
}

/// Readers that go by the oldest transaction of the whole server stop here.
#[tokio::test]
async fn an_idle_transaction_that_has_written_elsewhere_stalls_nothing() {
    let (database, elsewhere) = (Database::new().await, Database::new().await);
    let store = database.open(Settings::default()).await;
    let mut outsider = elsewhere.connect().await;
    let mut writing = outsider.begin().await.unwrap();
    sqlx::raw_sql("CREATE TABLE anything (id int)").execute(&mut *writing).await.unwrap();
    let xid: Option<String> = sqlx::query_scalar("SELECT pg_current_xact_id_if_assigned()::text")
        .fetch_one(&mut *writing)
        .await
        .unwrap();
    assert!(xid.is_some(), "it has written");

    let messages: Vec<_> = (0..50).map(|n| message(&n.to_string())).collect();
    emit(&store, &messages).await;
    assert_eq!(read_all(&store).await.len(), 50);
    crate::support::confirm_all(&store).await;
    assert_eq!(store.backlog().await.unwrap().0, 0);
    // Nor does it keep what is gone from being cleared away.
    let mut operator = database.connect().await;
    sqlx::raw_sql("VACUUM antiphon_outbox").execute(&mut operator).await.unwrap();
    let size: i64 = sqlx::query_scalar("SELECT pg_relation_size('antiphon_outbox')")
        .fetch_one(&mut operator)
        .await
        .unwrap();
    assert_eq!(size, 0);
    writing.rollback().await.unwrap();
}
