//! Opening a database: TLS, credentials, servers that are not fit, migrations.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::Severity;
use antiphon_messaging::Durability;
use antiphon_outbox::Store;
use antiphon_store_mysql::{Migration, MysqlStore, OpenError, Settings};
use antiphon_testing::services::{Private, Service, certificate_authority};
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, Row};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use crate::database::{Database, emit, message};

async fn refused(url: &str, settings: Settings) -> OpenError {
    let opening = MysqlStore::open(url, settings);
    let answer =
        timeout(Duration::from_secs(20), opening).await.expect("it must not wait for ever");
    answer.expect_err("it must be refused")
}

/// The address over TLS, with a database of the test's own.
fn over_tls(database: &Database) -> String {
    let url = Service::Mariadb.tls_url();
    let (before, parameters) = url.split_once('?').unwrap();
    let (server, _) = before.rsplit_once('/').unwrap();
    format!("{server}/{}?{parameters}", database.name())
}

#[tokio::test]
async fn over_tls_the_server_must_be_signed_by_the_named_authority() {
    let database = Database::new();
    let url = over_tls(&database);
    let ca = Some(certificate_authority());
    let settings = Settings { ca_file: ca, ..Settings::default() };
    let store = MysqlStore::open(&url, settings.clone()).await.unwrap();
    let cipher = sqlx::query("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        .fetch_one(store.reader())
        .await
        .unwrap();
    assert!(!cipher.get::<String, _>(1).is_empty(), "the reader's connections are encrypted");
    emit(&store, &[message("a")]).await;

    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.pem");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=other"])
        .arg("-keyout")
        .arg(folder.path().join("key.pem"))
        .arg("-out")
        .arg(&other)
        .output()
        .unwrap();
    assert!(made.status.success());
    let wrong = Settings { ca_file: Some(other), ..settings.clone() };
    let error = refused(&url, wrong).await;
    assert!(matches!(error, OpenError::Tls { .. }), "{error}");
    assert!(error.to_string().contains("ca_file"), "{error}");
    // Without a word about authorities the public ones are asked, who did not sign it either.
    let error = refused(&url, Settings::default()).await;
    assert!(matches!(error, OpenError::Tls { .. }), "{error}");
    let missing = Settings { ca_file: Some("/no/such/ca.pem".into()), ..settings };
    let error = refused(&url, missing).await;
    assert!(matches!(error, OpenError::Tls { .. }), "{error}");
    assert!(error.to_string().contains("/no/such/ca.pem"), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[tokio::test]
async fn a_wrong_password_is_told_from_a_server_that_is_not_there() {
    let database = Database::new();
    let url = over_tls(&database).replace(":secret@", ":mistaken@");
    let ca = Some(certificate_authority());
    let settings = Settings { ca_file: ca, ..Settings::default() };
    let error = refused(&url, settings).await;
    assert!(matches!(&error, OpenError::Credentials { user, .. } if user == "antiphon"), "{error}");
    assert!(!error.to_string().contains("mistaken"), "{error}");

    let error = refused("mysql://root@127.0.0.1:1/orders", Settings::default()).await;
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mysql://root@{}/orders", silent.local_addr().unwrap());
    let connect_timeout = Duration::from_millis(300);
    let error = refused(&url, Settings { connect_timeout, ..Settings::default() }).await;
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_user_who_may_not_create_the_database_is_told_so() {
    let database = Database::new();
    let mut root = MySqlConnection::connect(&Service::Mariadb.url()).await.unwrap();
    let user = format!("{}_poor", database.name());
    let create = format!("CREATE USER '{user}'@'%' IDENTIFIED BY 'poor'");
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut root).await.unwrap();
    let url = database.url().replace("root@", &format!("{user}:poor@"));
    let error = refused(&url, Settings::default()).await;
    let drop = format!("DROP USER '{user}'@'%'");
    sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut root).await.unwrap();
    assert!(matches!(error, OpenError::Credentials { .. }), "{error}");
    assert!(error.to_string().contains("grants"), "{error}");
}

#[tokio::test]
async fn a_server_that_would_break_promises_is_refused_and_a_stopped_one_is_found() {
    let server = Private::start(Service::Mariadb).await.unwrap();
    let database = Database::on(&server.url());
    let store = database.open().await;
    assert_eq!(store.durability(), Durability::Disk);
    let findings = store.findings().await;
    assert!(findings.iter().any(|f| f.subject == "version" && f.text.contains("MariaDB")));
    assert!(findings.iter().all(|f| f.severity <= Severity::Note), "{findings:?}");
    for subject in ["durability", "connections", "transactions", "purge", "clock"] {
        assert!(
            findings.iter().any(|finding| finding.subject == subject),
            "{subject}: {findings:?}"
        );
    }

    let mut root = MySqlConnection::connect(&server.url()).await.unwrap();
    for (set, reset, word) in [
        (
            "auto_increment_increment = 2",
            "auto_increment_increment = 1",
            "auto_increment_increment",
        ),
        ("read_only = ON", "read_only = OFF", "read only"),
    ] {
        let set = AssertSqlSafe(format!("SET GLOBAL {set}"));
        sqlx::raw_sql(set).execute(&mut root).await.unwrap();
        let error = refused(&database.url(), Settings::default()).await;
        assert!(matches!(error, OpenError::Unfit { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
        let reset = AssertSqlSafe(format!("SET GLOBAL {reset}"));
        sqlx::raw_sql(reset).execute(&mut root).await.unwrap();
    }
    sqlx::raw_sql("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
        .execute(&mut root)
        .await
        .unwrap();
    let careless = database.open().await;
    assert_eq!(careless.durability(), Durability::PageCache);
    let findings = careless.findings().await;
    let durability = findings.iter().find(|finding| finding.subject == "durability").unwrap();
    assert_eq!(durability.severity, Severity::Warning);
    assert!(durability.advice.as_deref().unwrap().contains("= 1"), "{durability}");

    server.kill().await.unwrap();
    let findings = store.findings().await;
    assert_eq!(findings[0].severity, Severity::Problem, "{findings:?}");
    assert_eq!(findings[0].subject, "connection");
}

#[tokio::test]
async fn eight_programs_that_start_at_once_make_the_database_and_migrate_once() {
    let database = Arc::new(Database::new());
    let migrations = Arc::new([
        Migration::new(
            "0001-orders",
            "CREATE TABLE orders (id VARCHAR(36)); INSERT INTO orders VALUES ('x;y')",
        ),
        Migration::new("0002-index", "CREATE INDEX orders_id ON orders (id)"),
    ]);
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (database, migrations) = (Arc::clone(&database), Arc::clone(&migrations));
        opening.spawn(async move {
            let store = database.open().await;
            store.migrate("orders", migrations.as_slice()).await.unwrap();
            store
        });
    }
    let stores = opening.join_all().await;
    let orders: Vec<String> =
        sqlx::query_scalar("SELECT id FROM orders").fetch_all(stores[0].reader()).await.unwrap();
    assert_eq!(orders, ["x;y"]);
    for store in &stores {
        emit(store, &[message("a")]).await;
    }
}

#[tokio::test]
async fn migrations_that_do_not_fit_are_refused() {
    let database = Database::new();
    let store = database.open().await;
    let one = Migration::new("0001", "CREATE TABLE one (id INT)");
    let two = Migration::new("0002", "CREATE TABLE two (id INT)");
    store.migrate("orders", &[one.clone(), two.clone()]).await.unwrap();
    store.migrate("orders", &[one.clone(), two.clone()]).await.unwrap();

    let newer = store.migrate("orders", std::slice::from_ref(&one)).await.unwrap_err();
    assert!(matches!(newer, OpenError::Newer { .. }), "{newer}");
    assert!(newer.to_string().contains("newer version"), "{newer}");

    let changed = Migration::new("0002", "CREATE TABLE two (id INT, name INT)");
    let changed = store.migrate("orders", &[one, changed]).await.unwrap_err();
    assert!(matches!(changed, OpenError::Changed { .. }), "{changed}");

    let mut root = database.connect().await;
    sqlx::raw_sql("UPDATE antiphon_schema SET version = 99").execute(&mut root).await.unwrap();
    let newer = refused(&database.url(), Settings::default()).await;
    assert!(matches!(newer, OpenError::Newer { .. }), "{newer}");
}

#[tokio::test]
async fn a_migration_goes_on_where_it_failed_or_where_the_process_died() {
    let database = Database::new();
    let store = database.open().await;
    let with = |last: &str| {
        let head = "CREATE TABLE a (id INT PRIMARY KEY); INSERT INTO a VALUES (1); ";
        [Migration::new("0001", format!("{head}{last}"))]
    };
    let error = store.migrate("orders", &with("CREATE TABEL b (id INT)")).await.unwrap_err();
    assert!(
        matches!(&error, OpenError::Migration { statement: 3, name, .. } if name == "0001"),
        "{error}"
    );
    // A statement that fails because of what is there has not been begun by a process that died.
    let error = store.migrate("orders", &with("CREATE TABLE a (id INT)")).await.unwrap_err();
    assert!(matches!(&error, OpenError::Migration { statement: 3, .. }), "{error}");
    let again = store.migrate("orders", &with("CREATE TABLE a (id INT)")).await.unwrap_err();
    assert!(matches!(&again, OpenError::Migration { statement: 3, .. }), "{again}");
    store.migrate("orders", &with("CREATE TABLE b (id INT)")).await.unwrap();

    let broken = "CREATE TABLE c (id INT); INSERT INTO nowhere VALUES (2)";
    store.migrate("points", &[Migration::new("0001", broken)]).await.unwrap_err();
    // As if the process had died when its first statement had taken effect, and nobody had noted it.
    let died = format!(
        "UPDATE antiphon_migration SET done = 0, begun = 1, checksum = {} WHERE service = 'points'",
        0xcbf2_9ce4_8422_2325_u64.cast_signed(),
    );
    let mut root = database.connect().await;
    sqlx::raw_sql(AssertSqlSafe(died)).execute(&mut root).await.unwrap();
    let mended = Migration::new("0001", "CREATE TABLE c (id INT); INSERT INTO a VALUES (2)");
    store.migrate("points", &[mended]).await.unwrap();
    let rows: Vec<i32> =
        sqlx::query_scalar("SELECT id FROM a ORDER BY id").fetch_all(store.reader()).await.unwrap();
    assert_eq!(rows, [1, 2]);
}

#[tokio::test]
async fn a_schema_that_was_cut_short_is_completed() {
    let database = Database::new();
    drop(database.open().await);
    let mut root = database.connect().await;
    sqlx::raw_sql("DROP TABLE antiphon_call, antiphon_barrier; DELETE FROM antiphon_schema; DELETE FROM antiphon_key WHERE slot > 9")
        .execute(&mut root)
        .await
        .unwrap();
    let store = database.open().await;
    let slots: i64 = sqlx::query_scalar("SELECT count(*) FROM antiphon_key")
        .fetch_one(store.reader())
        .await
        .unwrap();
    assert_eq!(slots, 1_024);
    emit(&store, &[message("a")]).await;
}

#[tokio::test]
async fn the_time_is_the_databases() {
    let database = Database::new();
    let store = database.open().await;
    let micros: i64 =
        sqlx::query_scalar("SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))")
            .fetch_one(store.reader())
            .await
            .unwrap();
    let apart = (store.now().as_micros() - micros).abs();
    assert!(apart < 2_000_000, "{apart} µs");
    let began = (Instant::now(), store.now());
    tokio::time::sleep(Duration::from_millis(20)).await;
    let passed = store.now().since(began.1);
    assert!(passed >= Duration::from_millis(15) && passed <= began.0.elapsed() * 2, "{passed:?}");
}
