//! Opening the broker: what works, and what each mistake says.

use antiphon_broker_redis::{OpenError, RedisBroker, Settings};
use antiphon_config::Secret;
use antiphon_core::{Clock, MessageId, Severity};
use antiphon_messaging::{Broker, Durability, Group, Start, Topology};
use antiphon_testing::services::{PASSWORD, Private, Service, USER, certificate_authority};

use crate::common::{clean_up, open, settings};

fn tls() -> Settings {
    Settings { ca_file: Some(certificate_authority()), ..Settings::new(Service::Redis.tls_url()) }
}

async fn refusal(settings: Settings) -> OpenError {
    RedisBroker::open(settings).await.expect_err("it cannot be opened")
}

/// Runs a command at a server.
async fn tell(url: &str, words: &[&str]) {
    let client = redis::Client::open(url).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("it connects");
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async::<()>(&mut connection).await.expect("it is done");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_credentials_let_in() {
    let in_url = RedisBroker::open(tls()).await.expect("it opens");
    let findings = in_url.operate().expect("an operator").findings().await;
    assert!(findings.iter().all(|finding| finding.severity < Severity::Problem), "{findings:?}");
    let host = Service::Redis.tls_url().replace(&format!("{USER}:{PASSWORD}@"), "");
    let in_fields = Settings {
        url: host,
        user: Some(USER.into()),
        password: Some(Secret::new(PASSWORD.into())),
        ..tls()
    };
    RedisBroker::open(in_fields).await.expect("it opens");
}

#[tokio::test]
async fn a_wrong_password_is_said() {
    let url = Service::Redis.tls_url().replace(PASSWORD, "wrong");
    let error = refusal(Settings { url, ..tls() }).await;
    assert!(matches!(error, OpenError::Credentials { .. }), "{error:?}");
    assert!(!error.is_transient() && !error.to_string().contains("wrong@"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_trusted_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let other = folder.path().join("other.pem");
    // Some other authority.
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=somebody else", "-keyout", "/dev/null"])
        .arg("-out")
        .arg(&other)
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{made:?}");
    let error = refusal(Settings { ca_file: Some(other), ..tls() }).await;
    assert!(matches!(error, OpenError::Tls { .. }), "{error:?}");
    let missing = Settings { ca_file: Some(folder.path().join("missing.pem")), ..tls() };
    let error = refusal(missing).await;
    assert!(error.to_string().contains("missing.pem"), "{error}");
}

#[tokio::test]
async fn a_port_without_tls_is_said() {
    let plain = Service::Redis.url().replace("redis://", "rediss://");
    let error = refusal(Settings { url: plain, ..tls() }).await;
    assert!(matches!(error, OpenError::Tls { .. } | OpenError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let error = refusal(Settings::new(format!("redis://{address}"))).await;
    assert!(matches!(error, OpenError::Unreachable { .. }) && error.is_transient(), "{error:?}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_throws_messages_away_or_is_a_replica_is_refused() {
    let server = Private::start(Service::Redis).await.expect("a server");
    let url = server.url();
    tell(&url, &["CONFIG", "SET", "maxmemory", "100mb"]).await;
    tell(&url, &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    let error = refusal(Settings::new(url.clone())).await;
    assert!(matches!(error, OpenError::Evicts { .. }), "{error:?}");
    tell(&url, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    tell(&url, &["REPLICAOF", "127.0.0.1", "1"]).await;
    let error = refusal(Settings::new(url)).await;
    assert!(matches!(error, OpenError::Replica { .. }) && error.is_transient(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn durability_is_what_the_server_is_set_to() {
    let server = Private::start(Service::Redis).await.expect("a server");
    let url = server.url();
    for (name, value, durability, severity) in [
        ("appendfsync", "always", Durability::Disk, Severity::Fine),
        ("appendfsync", "everysec", Durability::PageCache, Severity::Warning),
        ("appendonly", "no", Durability::Memory, Severity::Warning),
    ] {
        tell(&url, &["CONFIG", "SET", name, value]).await;
        let broker = open(Settings::new(url.clone())).await;
        assert_eq!(broker.capabilities().durability, durability);
        let findings = broker.operate().expect("an operator").findings().await;
        let found = findings.iter().find(|finding| finding.subject == "durability");
        assert_eq!(found.map(|found| found.severity), Some(severity), "{findings:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_no_stream_and_a_group_of_another_kind_are_refused() {
    let broker = open(settings()).await;
    let topic = format!("opening.{}", MessageId::new(Clock::system().now()));
    tell(&Service::Redis.url(), &["SET", &format!("antiphon:topic:{topic}"), "text"]).await;
    let topology = Topology { topics: vec![topic.clone()], groups: Vec::new() };
    let error = broker.declare(&topology).await.expect_err("it is something else");
    assert!(!error.transient && error.to_string().contains("than a stream"), "{error}");
    tell(&Service::Redis.url(), &["DEL", &format!("antiphon:topic:{topic}")]).await;

    let group = |ordered| Group {
        name: format!("{topic}.all"),
        topics: vec![topic.clone()],
        start: Start::Earliest,
        ordered,
    };
    let with = |ordered| Topology { topics: vec![topic.clone()], groups: vec![group(ordered)] };
    broker.declare(&with(true)).await.expect("it is new");
    let error = broker.declare(&with(false)).await.expect_err("it reads in order");
    assert!(!error.transient && error.to_string().contains("in order"), "{error}");
    clean_up(&broker);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_forgot_is_declared_again_when_it_is_back() {
    let server = Private::start(Service::Redis).await.expect("a server");
    let broker = open(Settings::new(server.url())).await;
    let topology = Topology {
        topics: vec!["t".into()],
        groups: vec![Group {
            name: "g".into(),
            topics: vec!["t".into()],
            start: Start::Earliest,
            ordered: true,
        }],
    };
    broker.declare(&topology).await.expect("declared");
    server.stop().await.expect("it stops");
    let findings = broker.operate().expect("an operator").findings().await;
    assert!(findings.iter().any(|finding| finding.severity == Severity::Problem), "{findings:?}");
    std::fs::remove_dir_all(server.instance().data()).expect("its data is removed");
    std::fs::create_dir_all(server.instance().data()).expect("an empty folder");
    server.start_again().await.expect("it starts");
    let operator = broker.operate().expect("an operator");
    let groups = loop {
        match operator.groups().await {
            Ok(groups) if !groups.is_empty() => break groups,
            _ => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    };
    assert_eq!((groups[0].name.as_str(), groups[0].lag), ("g", Some(0)));
}
