//! Opening: what a person is told when something is wrong, over TLS and without.

use antiphon_broker_kafka::{KafkaBroker, Mechanism, OpenError, Settings};
use antiphon_config::{HumanDuration, Secret};
use antiphon_core::Severity;
use antiphon_messaging::{Broker, Durability};
use antiphon_testing::proxy::{Faults, Proxy, Way};
use antiphon_testing::services::{Service, certificate_authority};
use tokio::time::{Duration, Instant};

use crate::common::{message, open, send, settings, subscription, topology, unique};

/// Over TLS, with a password.
fn secure() -> Settings {
    Settings { url: Service::Kafka.tls_url(), ca_file: Some(certificate_authority()), ..settings() }
}

async fn refusal(settings: Settings) -> OpenError {
    KafkaBroker::open(settings).await.expect_err("it is refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_travel_over_tls_with_a_password() {
    let broker = crate::common::Tidy::new(open(secure()).await);
    let name = unique("tls");
    broker.declare(&topology(&name, true)).await.expect("declared");
    send(&broker, vec![message(&name, "k", "secret")]).await;
    let mut source = broker.subscribe(subscription(&name, true)).await.expect("joined");
    let antiphon_messaging::Fetched::Deliveries(deliveries) = source.fetch(1).await else {
        unreachable!("a delivery")
    };
    assert_eq!(crate::common::text(&deliveries[0]), "secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_named_and_soon() {
    let begun = Instant::now();
    let settings = Settings { password: Some(Secret::new("wrong".into())), ..secure() };
    let error = refusal(settings).await;
    assert!(matches!(error, OpenError::Unauthorized { .. }), "{error}");
    assert!(!error.to_string().contains("wrong"), "the password is not shown: {error}");
    assert!(begun.elapsed() < Duration::from_secs(8), "it is not tried for long");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mechanism_that_the_broker_does_not_know_is_named() {
    let error = refusal(Settings { mechanism: Mechanism::ScramSha256, ..secure() }).await;
    assert!(matches!(error, OpenError::Unauthorized { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_authority_is_not_trusted() {
    let error = refusal(Settings { ca_file: None, ..secure() }).await;
    assert!(matches!(error, OpenError::Tls { .. }), "{error}");
    assert!(error.to_string().contains("ca_file"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_is_unreachable() {
    let settings = Settings {
        url: "kafka://127.0.0.1:9".into(),
        connect_timeout: HumanDuration::from_millis(1_000),
        ..settings()
    };
    let error = refusal(settings).await;
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_is_unreachable_in_time() {
    let proxy = Proxy::in_front_of(&Service::Kafka.url()).await.expect("a proxy");
    proxy.set(Faults::both(Way { swallow: true, ..Way::default() }));
    let settings = Settings {
        url: proxy.url().to_owned(),
        connect_timeout: HumanDuration::from_millis(1_000),
        ..settings()
    };
    let begun = Instant::now();
    let error = refusal(settings).await;
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(proxy.counts().swallowed > 0, "the fault bit");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_contradict_each_other_are_refused_before_anything_is_asked() {
    let error =
        refusal(Settings { heartbeat: HumanDuration::from_millis(60_000), ..settings() }).await;
    assert!(matches!(error, OpenError::Settings { .. }), "{error}");
    let nonsense = [("no.such.setting".to_owned(), "1".to_owned())].into();
    let error = refusal(Settings { client: nonsense, ..settings() }).await;
    assert!(error.to_string().contains("no.such.setting"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_broker_does_not_promise_what_three_could() {
    let broker = open(settings()).await;
    assert_eq!(broker.capabilities().durability, Durability::PageCache);
    let findings = broker.operate().expect("an operator's view").findings().await;
    let of = |subject: &str| findings.iter().find(|finding| finding.subject == subject);
    assert_eq!(of("connection").map(|finding| finding.severity), Some(Severity::Fine));
    assert_eq!(of("version").map(|finding| finding.severity), Some(Severity::Fine));
    let kept = of("new topics").expect("a finding on durability");
    assert_eq!(kept.severity, Severity::Warning, "{kept}");
    assert!(kept.advice.as_deref().is_some_and(|advice| advice.contains("replication = 3")));
}
