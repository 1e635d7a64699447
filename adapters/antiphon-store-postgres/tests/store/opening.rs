//! Getting in and bringing the tables up to date: what is refused, and that several may do it at
//! once.

use std::sync::Arc;

use antiphon_store_postgres::{Migration, OpenError, PostgresStore, Settings};
use antiphon_testing::services::{Service, USER, certificate_authority};
use tempfile::TempDir;

use crate::support::{Database, run, url_of};

async fn refused(url: &str, settings: Settings) -> OpenError {
    PostgresStore::open(url, settings).await.expect_err("it must be refused")
}

/// The URL with which the user with a password gets in over TLS.
fn tls_url(database: &Database) -> String {
    let url = Service::Postgres.tls_url();
    let (server, rest) = url.rsplit_once('/').expect("the URL names a database");
    let (_, parameters) = rest.split_once('?').expect("the URL asks for TLS");
    format!("{server}/{}?{parameters}", database.name())
}

fn with_authority(path: impl Into<std::path::PathBuf>) -> Settings {
    Settings { ca_file: Some(path.into()), ..Settings::default() }
}

#[tokio::test]
async fn a_missing_database_is_made_once_by_many_that_start_at_once() {
    let database = Database::none();
    let migrations = Arc::new([
        Migration::new(
            "0001-orders",
            "CREATE TABLE orders (id TEXT); INSERT INTO orders VALUES ('x')",
        ),
        Migration::new("0002-index", "CREATE INDEX orders_id ON orders (id)"),
    ]);
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (url, migrations) = (database.url(), Arc::clone(&migrations));
        opening.spawn(async move {
            let store = PostgresStore::open(&url, Settings::default()).await.unwrap();
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
    let database = Database::new().await;
    let store = database.open(Settings::default()).await;
    let one = Migration::new("0001", "CREATE TABLE one (id TEXT)");
    let two = Migration::new("0002", "CREATE TABLE two (id TEXT)");
    store.migrate("orders", &[one.clone(), two.clone()]).await.unwrap();

    let newer = store.migrate("orders", std::slice::from_ref(&one)).await.unwrap_err();
    assert!(matches!(newer, OpenError::Newer { .. }), "{newer}");
    assert!(newer.to_string().contains("newer version"), "{newer}");

    let changed = Migration::new("0002", "CREATE TABLE two (id TEXT, name TEXT)");
    let changed = store.migrate("orders", &[one.clone(), changed]).await.unwrap_err();
    assert!(matches!(changed, OpenError::Changed { .. }), "{changed}");

    let three = Migration::new("0003", "CREATE TABLE three (id TEXT)");
    let wrong = Migration::new("0004", "CREATE TABEL four (id TEXT)");
    let failed = store.migrate("orders", &[one, two, three, wrong]).await.unwrap_err();
    assert!(matches!(&failed, OpenError::Migration { name, .. } if name == "0004"), "{failed}");
    let three = sqlx::query("SELECT * FROM three").fetch_all(store.reader()).await;
    assert!(three.is_err(), "a failed migration must undo the ones before it");
}

#[tokio::test]
async fn a_database_of_a_newer_framework_is_refused_and_an_older_one_brought_up_to_date() {
    let database = Database::new().await;
    let mut connection = database.connect().await;
    let change = async |connection: &mut sqlx::PgConnection, sql: &'static str| {
        sqlx::raw_sql(sql).execute(connection).await.unwrap();
    };
    change(&mut connection, "UPDATE antiphon_schema SET version = 99").await;
    let error = refused(&database.url(), Settings::default()).await;
    assert!(matches!(error, OpenError::Newer { .. }), "{error}");

    // As a version that had no sagas has left it.
    change(
        &mut connection,
        "UPDATE antiphon_schema SET version = 1;
         DELETE FROM antiphon_schema WHERE component = 'saga';
         DROP TABLE antiphon_saga, antiphon_barrier",
    )
    .await;
    let store = database.open(Settings::default()).await;
    let sagas: i64 = sqlx::query_scalar("SELECT count(*) FROM antiphon_saga")
        .fetch_one(store.reader())
        .await
        .unwrap();
    assert_eq!(sagas, 0);
}

#[tokio::test]
async fn the_right_authority_lets_in_over_tls_and_a_wrong_one_does_not() {
    let database = Database::none();
    let url = tls_url(&database);
    run(&format!("CREATE DATABASE {} OWNER {USER}", database.name())).await;

    let store = PostgresStore::open(&url, with_authority(certificate_authority())).await.unwrap();
    let is_encrypted: bool =
        sqlx::query_scalar("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            .fetch_one(store.reader())
            .await
            .unwrap();
    assert!(is_encrypted);

    let folder = TempDir::new().unwrap();
    let other = folder.path().join("other.pem");
    std::fs::write(&other, include_str!("other-authority.pem")).unwrap();
    let error = refused(&url, with_authority(&other)).await;
    assert!(matches!(error, OpenError::Tls { .. }), "{error:?}");
    assert!(error.to_string().contains("certificate authority"), "{error}");
    // The public authorities do not know it either.
    let error = refused(&url, Settings::default()).await;
    assert!(matches!(error, OpenError::Tls { .. }), "{error:?}");
    let error = refused(&url, with_authority(folder.path().join("missing.pem"))).await;
    assert!(error.to_string().contains("missing.pem"), "{error}");
}

#[tokio::test]
async fn who_may_not_come_in_is_told_so() {
    let database = Database::new().await;
    let wrong = tls_url(&database).replace(":secret@", ":guessed@");
    let error = refused(&wrong, with_authority(certificate_authority())).await;
    assert!(matches!(error, OpenError::Permission { .. }), "{error:?}");
    assert!(error.to_string().contains("password"), "{error}");
    assert!(!error.to_string().contains("guessed"), "{error}");
    // The role gets in, but may not make tables in a database that is not its own.
    let bare = Database::none();
    run(&format!("CREATE DATABASE {}", bare.name())).await;
    let error = refused(&tls_url(&bare), with_authority(certificate_authority())).await;
    assert!(matches!(error, OpenError::Permission { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("postgres://ann:secret@127.0.0.1:{port}/orders");
    let error = refused(&url, Settings::default()).await;
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&port.to_string()) && !text.contains("secret"), "{text}");
    let error = refused("postgres://no-such-host.invalid/orders", Settings::default()).await;
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_database_that_cannot_keep_every_text_is_refused() {
    let database = Database::none();
    run(&format!(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'",
        database.name()
    ))
    .await;
    let error = refused(&url_of(database.name()), Settings::default()).await;
    assert!(matches!(error, OpenError::Unfit { .. }), "{error:?}");
    assert!(error.to_string().contains("UTF8"), "{error}");
}
