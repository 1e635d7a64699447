//! Reaching the server: TLS, credentials, and what mistakes say.

use antiphon_cache::SharedLevel;
use antiphon_cache_redis::{RedisLevel, Settings, StartError};
use antiphon_config::Secret;
use antiphon_testing::services::{PASSWORD, Service, USER, certificate_authority};

use crate::common::{at, connected};

fn tls() -> Settings {
    Settings { ca_file: Some(certificate_authority()), ..at(&Service::Redis.tls_url()) }
}

#[tokio::test]
async fn tls_and_credentials_let_in() {
    let in_url = connected(&tls()).await;
    in_url.read("stock", "k").await.expect("an answer");
    let url = Service::Redis.tls_url().replace(&format!("{USER}:{PASSWORD}@"), "");
    let (user, password) = (Some(USER.to_owned()), Some(Secret::new(PASSWORD.into())));
    let in_fields = connected(&Settings { url, user, password, ..tls() }).await;
    in_fields.read("stock", "k").await.expect("an answer");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_no_reason_not_to_start() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let level = RedisLevel::start(&at(&format!("redis://{address}"))).expect("it starts");
    assert!(!level.is_connected());
    let error = level.read("stock", "k").await.expect_err("nobody is there");
    assert!(error.to_string().contains("no connection"), "{error}");
}

#[tokio::test]
async fn settings_that_cannot_work_are_said() {
    let missing = Settings { ca_file: Some("/missing/ca.pem".into()), ..tls() };
    let error = RedisLevel::start(&missing).expect_err("there is no such file");
    assert!(error.to_string().contains("/missing/ca.pem"), "{error}");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nnothing\n").expect("it is written");
    let error = RedisLevel::start(&Settings { ca_file: Some(file), ..tls() });
    let error = error.expect_err("there is no certificate in it");
    assert!(matches!(error, StartError::Tls { .. }), "{error:?}");
    assert!(!format!("{error:?}").contains(PASSWORD), "{error:?}");
}
