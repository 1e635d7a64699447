//! Connections that are killed, networks that lose answers, servers that are restarted.

use std::time::Duration;

use antiphon_outbox::{CommitError, InboxStore, LeaseStore, OutboxStore, Store};
use antiphon_store_mysql::{Connection, MysqlStore, Settings};
use antiphon_testing::proxy::{Faults, Proxy, Way};
use antiphon_testing::services::{Private, Service};
use sqlx::AssertSqlSafe;
use tokio::time::{Instant, timeout};

use crate::database::{Database, emit, message, read_all, read_rows};

async fn id_of(connection: &mut Connection) -> u64 {
    sqlx::query_scalar("SELECT CONNECTION_ID()").fetch_one(&mut **connection).await.unwrap()
}

async fn kill(database: &Database, id: u64) {
    let kill = AssertSqlSafe(format!("KILL CONNECTION {id}"));
    sqlx::raw_sql(kill).execute(&mut database.connect().await).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_killed_commits_nothing_and_is_replaced() {
    let database = Database::new();
    let store = database.open().await;
    let mut connection = store.begin().await.unwrap();
    store.enter(&mut connection, "c", &[&message("a")]).await.unwrap();
    store.append(&mut connection, &[message("a")]).await.unwrap();
    let id = id_of(&mut connection).await;
    kill(&database, id).await;
    let error = store.commit(connection).await.expect_err("it was killed");
    assert!(!error.is_busy(), "{error}");
    assert!(read_all(&store).await.is_empty());
    assert!(store.handled().await.unwrap().is_empty());

    // In the middle of a statement of the user.
    let mut connection = store.begin().await.unwrap();
    store.append(&mut connection, &[message("a")]).await.unwrap();
    let id = id_of(&mut connection).await;
    let (failed, ()) = tokio::join!(
        async { sqlx::query("SELECT SLEEP(20)").execute(&mut *connection).await.is_err() },
        kill(&database, id),
    );
    let _ = failed;
    store.commit(connection).await.expect_err("it was killed");
    assert!(read_all(&store).await.is_empty());
    emit(&store, &[message("b")]).await;
    assert_eq!(read_all(&store).await.len(), 1);
}

#[tokio::test]
async fn idle_connections_that_the_server_has_ended_are_replaced() {
    let database = Database::new();
    let store = database.open().await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(store.begin().await.unwrap());
    }
    let mut ids = Vec::new();
    for connection in &mut held {
        ids.push(id_of(connection).await);
    }
    for connection in held {
        store.commit(connection).await.unwrap();
    }
    for id in ids {
        kill(&database, id).await;
    }
    // Only those that were silent for a moment are tried before they are used.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..4 {
        emit(&store, &[message("a")]).await;
    }
    assert_eq!(read_all(&store).await.len(), 4);
}

async fn through_proxy(database: &Database) -> (Proxy, MysqlStore) {
    let proxy = Proxy::in_front_of(&database.url()).await.unwrap();
    let settings = Settings {
        statement_timeout: Duration::from_millis(700),
        connect_timeout: Duration::from_secs(5),
        ..Settings::default()
    };
    let store = MysqlStore::open(proxy.url(), settings).await.unwrap();
    (proxy, store)
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_unknown_and_may_have_been_done() {
    let database = Database::new();
    let (proxy, store) = through_proxy(&database).await;
    let direct = database.open().await;
    let mut connection = store.begin().await.unwrap();
    store.append(&mut connection, &[message("a")]).await.unwrap();
    proxy.set(Faults { to_client: Way { swallow: true, ..Way::default() }, ..Faults::default() });
    let error = store.commit(connection).await.unwrap_err();
    assert!(matches!(error, CommitError::Unknown(_)), "{error}");
    assert!(proxy.counts().swallowed > 0, "the fault bit");
    assert_eq!(read_all(&direct).await.len(), 1, "it was done");
    proxy.heal();
    emit(&store, &[message("b")]).await;
    assert_eq!(read_all(&store).await.len(), 2);
}

#[tokio::test]
async fn a_commit_that_never_arrives_is_unknown_and_was_not_done() {
    let database = Database::new();
    let (proxy, store) = through_proxy(&database).await;
    let direct = database.open().await;
    let mut connection = store.begin().await.unwrap();
    store.append(&mut connection, &[message("a")]).await.unwrap();
    proxy.set(Faults { to_server: Way { swallow: true, ..Way::default() }, ..Faults::default() });
    let error = store.commit(connection).await.unwrap_err();
    assert!(matches!(error, CommitError::Unknown(_)), "{error}");
    assert!(read_all(&direct).await.is_empty());
    proxy.heal();
    emit(&store, &[message("b")]).await;
    assert_eq!(read_all(&store).await.len(), 1);
}

#[tokio::test]
async fn a_connection_that_is_cut_anywhere_in_a_commit_leaves_all_or_nothing() {
    let database = Database::new();
    let (proxy, store) = through_proxy(&database).await;
    let direct = database.open().await;
    let mut unknown = 0;
    for bytes in [0, 40, 200, 600, 900] {
        let before = read_rows(&direct).await.len();
        let mut connection = store.begin().await.unwrap();
        store.append(&mut connection, &[message("a"), message("b")]).await.unwrap();
        let way = Way { cut_after: Some(bytes), ..Way::default() };
        proxy.set(Faults { to_server: way, ..Faults::default() });
        let outcome = store.commit(connection).await;
        proxy.heal();
        let written = read_rows(&direct).await.len() - before;
        match outcome {
            Ok(()) => assert_eq!(written, 2),
            Err(CommitError::Unknown(_)) => unknown += 1,
            Err(error) => panic!("nobody can know that: {error}"),
        }
        assert!(written == 0 || written == 2, "{written}");
    }
    assert!(unknown > 0 && proxy.counts().cut > 0, "the fault bit");
}

#[tokio::test]
async fn a_network_that_goes_silent_is_given_up_and_comes_back() {
    let database = Database::new();
    let (proxy, store) = through_proxy(&database).await;
    emit(&store, &[message("a")]).await;
    proxy.set(Faults::both(Way { swallow: true, ..Way::default() }));
    let began = Instant::now();
    store.sent().await.expect_err("nothing comes back");
    store.acquire("outbox", 16, 16, "one", Duration::from_secs(5)).await.expect_err("silent");
    assert!(began.elapsed() < Duration::from_secs(20));
    proxy.heal();
    let healed = async {
        while store.sent().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), healed).await.unwrap();
    assert_eq!(read_all(&store).await.len(), 1);
}

#[tokio::test]
async fn a_server_that_is_killed_keeps_what_was_committed_and_gives_no_token_twice() {
    let server = Private::start(Service::Mariadb).await.unwrap();
    let database = Database::on(&server.url());
    let store = database.open().await;
    let ttl = Duration::from_secs(60);
    let mut committed = 0;
    let mut token = 0;
    let mut seq = None;
    for round in 0..2 {
        emit(&store, &[message("a"), message("a")]).await;
        committed += 2;
        let rows = read_rows(&store).await;
        assert_eq!(rows.len(), committed);
        let newest = rows.iter().map(|row| row.seq).max();
        assert!(newest > seq, "positions grow over restarts");
        seq = newest;
        let leases = store.acquire("outbox", 16, 16, &format!("owner-{round}"), ttl).await.unwrap();
        let least = leases.iter().map(|lease| lease.token).min().unwrap();
        assert!(least > token, "tokens grow over restarts");
        token = leases.iter().map(|lease| lease.token).max().unwrap();
        store.release(&leases).await.unwrap();
        let mut open = store.begin().await.unwrap();
        store.append(&mut open, &[message("never")]).await.unwrap();
        server.kill().await.unwrap();
        store.commit(open).await.expect_err("the server is gone");
        store.sent().await.expect_err("nobody is there");
        server.start_again().await.unwrap();
        let back = async {
            while store.sent().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(30), back).await.unwrap();
    }
    assert_eq!(read_all(&store).await.len(), committed);
}
