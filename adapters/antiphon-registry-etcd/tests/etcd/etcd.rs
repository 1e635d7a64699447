//! What is special about etcd.

use std::time::Duration;

use antiphon_config::TlsFiles;
use antiphon_discovery::Resolver;
use antiphon_registry_etcd::{EtcdRegistry, Settings};
use antiphon_registry_http::{HttpClient, Question};
use antiphon_testing::conformance::registry::{PATIENCE, Seen, instance, register, unique};
use antiphon_testing::services::{PASSWORD, Service, USER, certificate_authority};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use tokio::time::timeout;

use crate::relay::Relay;

fn open(settings: Settings) -> EtcdRegistry {
    EtcdRegistry::new(settings).expect("the settings make sense")
}

/// The address of the shared server over TLS; it asks for no user.
fn secure() -> Settings {
    let url = Service::Etcd.tls_url().replace(&format!("{USER}:{PASSWORD}@"), "");
    Settings { ca_file: Some(certificate_authority()), ..Settings::new(url) }
}

#[tokio::test]
async fn it_speaks_tls_and_needs_no_user_where_nobody_is_asked() {
    let settings = Settings {
        user: Some(USER.to_owned()),
        password: Some(antiphon_config::Secret::new(PASSWORD.to_owned())),
        ..secure()
    };
    let registry = open(settings);
    let service = unique("tls");
    let registration = register(&registry, &service, instance("10.0.0.1:80")).await;
    Seen::new(&registry, &service).until(&["10.0.0.1:80"]).await;
    registration.deregister().await.expect("it is removed");
}

#[tokio::test]
async fn a_certificate_that_nobody_signed_is_refused() {
    let registry = open(Settings { ca_file: None, ..secure() });
    let mut answers = registry.watch(&unique("tls"));
    let said = timeout(PATIENCE, answers.next()).await.expect("soon");
    let error = said.expect_err("there is no trust").chain();
    assert!(error.contains("ertificate"), "{error}");
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_is_away() {
    // Nothing listens on the first port: it was free a moment ago, and stays bound to nothing.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let away = free.local_addr().expect("its address");
    drop(free);
    let endpoints = vec![format!("http://{away}"), Service::Etcd.url()];
    let registry = open(Settings { endpoints, ..Settings::default() });
    let service = unique("next");
    let registration = register(&registry, &service, instance("10.0.0.1:80")).await;
    Seen::new(&registry, &service).until(&["10.0.0.1:80"]).await;
    registration.deregister().await.expect("it is removed");
}

#[tokio::test]
async fn a_registration_outlives_many_times_its_lease() {
    let lease = antiphon_config::HumanDuration::from_secs(1);
    let registry = open(Settings { lease, ..Settings::new(Service::Etcd.url()) });
    let service = unique("renewed");
    let registration = register(&registry, &service, instance("10.0.0.1:80")).await;
    let mut answers = registry.watch(&service);
    assert_eq!(answers.next().await.expect("an answer").len(), 1);
    // Nothing but a change answers, and there is none.
    let change = timeout(Duration::from_secs(4), answers.next()).await;
    assert!(change.is_err(), "{change:?}");
    registration.deregister().await.expect("it is removed");
}

#[tokio::test]
async fn a_key_that_somebody_removes_is_written_again() {
    let lease = antiphon_config::HumanDuration::from_secs(1);
    let registry = open(Settings { lease, ..Settings::new(Service::Etcd.url()) });
    let service = unique("removed");
    let registration = register(&registry, &service, instance("10.0.0.1:80")).await;
    let mut standing = registration.follow();
    standing.mark_unchanged();
    let servers = [Service::Etcd.url()];
    let http = HttpClient::new("url", &servers, &TlsFiles::default(), PATIENCE).expect("a client");
    let key = STANDARD.encode(format!("/antiphon/services/{service}/10.0.0.1:80"));
    let removal = Question::new(Method::POST, "/v3/kv/deleterange")
        .with_body(serde_json::json!({ "key": key }).to_string());
    let answer = http.ask(removal, PATIENCE).await.expect("an answer");
    assert!(answer.words().contains(r#""deleted":"1""#), "{}", answer.words());
    timeout(PATIENCE, standing.changed()).await.expect("in time").expect("it is kept");
    timeout(PATIENCE, registration.held()).await.expect("it is written again");
    Seen::new(&registry, &service).until(&["10.0.0.1:80"]).await;
    registration.deregister().await.expect("it is removed");
}

/// The server answers, but not on the connection of the watch, and nobody says so.
#[tokio::test]
async fn a_watch_that_is_lost_on_the_way_misses_nothing() {
    let target = Service::Etcd.url().trim_start_matches("http://").parse().expect("an address");
    let (relay, url) = Relay::to(target).await;
    let lease = antiphon_config::HumanDuration::from_secs(1);
    let near = open(Settings { lease, ..Settings::new(url) });
    let far = open(Settings::new(Service::Etcd.url()));
    let service = unique("lost");
    let mut seen = Seen::new(&near, &service);
    assert!(seen.next().await.is_empty());
    let one = register(&far, &service, instance("10.0.0.1:80")).await;
    seen.until(&["10.0.0.1:80"]).await;
    relay.lose_watches();
    let two = register(&far, &service, instance("10.0.0.2:80")).await;
    seen.until(&["10.0.0.1:80", "10.0.0.2:80"]).await;
    assert!(relay.bites() > 0, "something was lost");
    // One that goes while another comes: their number stays.
    relay.lose_watches();
    one.deregister().await.expect("it is removed");
    let three = register(&far, &service, instance("10.0.0.3:80")).await;
    seen.until(&["10.0.0.2:80", "10.0.0.3:80"]).await;
    relay.lose_watches();
    two.deregister().await.expect("it is removed");
    seen.until(&["10.0.0.3:80"]).await;
    three.deregister().await.expect("it is removed");
}
