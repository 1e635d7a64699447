//! Reaching the server: TLS, credentials, what mistakes say, and what is left at the server.

use antiphon_config::Secret;
use antiphon_rates_redis::{RedisRates, Settings, StartError};
use antiphon_resilience::{RateSettings, RateStore};
use antiphon_testing::services::{PASSWORD, Service, USER, certificate_authority};

use crate::common::{ask, at, connected, settings, until};
use crate::log::Log;

const RATE: RateSettings = RateSettings { per_second: 10.0, burst: 5 };

fn tls() -> Settings {
    Settings { ca_file: Some(certificate_authority()), ..at(&Service::Redis.tls_url()) }
}

#[tokio::test]
async fn tls_and_credentials_let_in() {
    let in_url = connected(&tls()).await;
    in_url.take(b"k", RATE, 1).await.expect("an answer");
    let url = Service::Redis.tls_url().replace(&format!("{USER}:{PASSWORD}@"), "");
    let (user, password) = (Some(USER.to_owned()), Some(Secret::new(PASSWORD.into())));
    let in_fields = connected(&Settings { url, user, password, ..tls() }).await;
    in_fields.take(b"k", RATE, 1).await.expect("an answer");
}

#[tokio::test]
async fn a_wrong_password_is_named_in_the_log_and_never_written() {
    let log = Log::keep();
    let url = Service::Redis.tls_url().replace(PASSWORD, "mistyped");
    let store = RedisRates::start(&Settings { url, ..tls() }).expect("it starts");
    until("the log says so", || log.count(&["WARN", "check user and password"]) > 0).await;
    assert!(
        log.count(&["WRONGPASS"]) + log.count(&["invalid username-password"]) > 0,
        "{}",
        log.text()
    );
    assert_eq!(log.count(&["mistyped"]), 0, "{}", log.text());
    let error = store.take(b"k", RATE, 1).await.expect_err("there is no connection");
    assert!(error.to_string().contains("no connection"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_no_reason_not_to_start() {
    let log = Log::keep();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let store = RedisRates::start(&at(&format!("redis://{address}"))).expect("it starts");
    assert!(store.take(b"k", RATE, 1).await.is_err());
    let words = ["WARN", &address.to_string(), "is it running"];
    until("the log says so", || log.count(&words) > 0).await;
    assert!(!store.is_connected());
}

#[tokio::test]
async fn settings_that_cannot_work_are_said() {
    let missing = Settings { ca_file: Some("/missing/ca.pem".into()), ..tls() };
    let error = RedisRates::start(&missing).expect_err("there is no such file");
    assert!(error.to_string().contains("/missing/ca.pem"), "{error}");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nnothing\n").expect("it is written");
    let error = RedisRates::start(&Settings { ca_file: Some(file), ..tls() });
    let error = error.expect_err("there is no certificate in it");
    assert!(matches!(error, StartError::Tls { .. }), "{error:?}");
    assert!(!format!("{error:?}").contains(PASSWORD), "{error:?}");
}

#[tokio::test]
async fn a_key_lives_as_long_as_it_is_used_up() {
    let settings = settings();
    let store = connected(&settings).await;
    let life = async |key: &str| -> i64 {
        let name = format!("{}:rate:{key}", settings.prefix);
        ask(&settings.url, redis::cmd("PTTL").arg(name)).await
    };
    let slow = RateSettings { per_second: 0.1, burst: 5 };
    store.take(b"slow", slow, 3).await.expect("an answer");
    let thirty_seconds = life("slow").await;
    assert!((20_000..=30_001).contains(&thirty_seconds), "{thirty_seconds}");
    // What is refused changes nothing.
    store.take(b"slow", slow, 2).await.expect("an answer");
    store.take(b"slow", slow, 2).await.expect("an answer");
    let fifty = life("slow").await;
    assert!((40_000..=50_001).contains(&fifty), "{fifty}");
    let year = RateSettings { per_second: 0.0, burst: u32::MAX };
    store.take(b"year", year, u32::MAX).await.expect("an answer");
    assert!(life("year").await > 0, "every key has an end");
}
