//! Opening the broker: what works, and what each mistake says.

use crate::common::{clean_up, open, settings};
use antiphon_broker_nats::{NatsBroker, OpenError, Settings};
use antiphon_config::Secret;
use antiphon_core::{Clock, MessageId, Severity};
use antiphon_messaging::{Broker, Durability, Group, Start, Topology};
use antiphon_testing::services::{PASSWORD, Private, Service, USER, certificate_authority};
use async_nats::jetstream;

fn tls() -> Settings {
    Settings { ca_file: Some(certificate_authority()), ..Settings::new(Service::Nats.tls_url()) }
}

async fn refusal(settings: Settings) -> OpenError {
    NatsBroker::open(settings).await.expect_err("it cannot be opened")
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_credentials_let_in() {
    let in_url = NatsBroker::open(tls()).await.expect("it opens");
    assert_eq!(in_url.capabilities().durability, Durability::PageCache);
    let host = Service::Nats.tls_url().replace(&format!("{USER}:{PASSWORD}@"), "");
    let in_fields = Settings {
        url: host,
        user: Some(USER.into()),
        password: Some(Secret::new(PASSWORD.into())),
        sync_always: true,
        ..tls()
    };
    let in_fields = NatsBroker::open(in_fields).await.expect("it opens");
    assert_eq!(in_fields.capabilities().durability, Durability::Disk);
    let findings = in_fields.operate().expect("an operator").findings().await;
    assert!(findings.iter().all(|finding| finding.severity < Severity::Problem), "{findings:?}");
}

#[tokio::test]
async fn a_wrong_password_is_said() {
    let url = Service::Nats.tls_url().replace(PASSWORD, "wrong");
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
async fn a_server_that_is_not_there_is_said() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let error = refusal(Settings::new(format!("nats://{address}"))).await;
    assert!(matches!(error, OpenError::Unreachable { .. }) && error.is_transient(), "{error:?}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn a_server_without_jetstream_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = std::process::Command::new("nats-server")
        .args(["-a", "127.0.0.1", "-p", "-1", "--ports_file_dir"])
        .arg(folder.path())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("nats-server runs");
    let address = loop {
        let files = std::fs::read_dir(folder.path()).expect("the folder");
        let text: String =
            files.flatten().filter_map(|file| std::fs::read_to_string(file.path()).ok()).collect();
        if let Some(url) = text.split('"').find(|part| part.starts_with("nats://")) {
            break url.to_owned();
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    let error = refusal(Settings::new(address)).await;
    server.kill().expect("it ends");
    server.wait().expect("it has ended");
    assert!(matches!(error, OpenError::NoJetStream { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_other_settings_is_refused_with_the_difference() {
    let broker = open(settings()).await;
    let topic = format!("opening.{}", MessageId::new(Clock::system().now()));
    let topology = Topology { topics: vec![topic.clone()], groups: Vec::new() };
    broker.declare(&topology).await.expect("it is new");
    let shorter = Settings { max_age: "1h".parse().expect("an age"), ..settings() };
    let other = open(shorter).await;
    let error = other.declare(&topology).await.expect_err("it exists with another age");
    assert!(!error.transient && error.to_string().contains("max_age is 7d, and 1h"), "{error}");
    let findings = other.operate().expect("an operator").findings().await;
    let finding = findings.iter().find(|finding| finding.subject == format!("topic {topic}"));
    assert_eq!(finding.map(|finding| finding.severity), Some(Severity::Problem));

    // Somebody else's stream that takes the same subjects.
    let client = async_nats::connect(Service::Nats.url()).await.expect("it connects");
    let context = jetstream::new(client);
    let taken = format!("{topic}.taken");
    let foreign = taken.replace('.', "-");
    let config = jetstream::stream::Config {
        name: foreign.clone(),
        subjects: vec![format!("{taken}.>")],
        ..jetstream::stream::Config::default()
    };
    context.create_stream(config).await.expect("it is made");
    let topology = Topology { topics: vec![taken.clone()], groups: Vec::new() };
    let error = broker.declare(&topology).await.expect_err("its subjects are taken");
    assert!(!error.transient && error.to_string().contains("overlap"), "{error}");
    context.delete_stream(foreign).await.expect("it is removed");
    clean_up(&broker);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_cannot_be_subjects_are_refused() {
    let broker = open(settings()).await;
    for topic in ["", "a..b", "a.*", "two words", "$SYS.a"] {
        let topology = Topology { topics: vec![topic.to_owned()], groups: Vec::new() };
        let error = broker.declare(&topology).await.expect_err(topic);
        assert!(!error.transient && error.to_string().contains(topic), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_forgot_is_declared_again_when_it_is_back() {
    let server = Private::start(Service::Nats).await.expect("a server");
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
