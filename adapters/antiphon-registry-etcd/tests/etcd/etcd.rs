//! What is special about etcd.

use std::time::Duration;

use antiphon_discovery::Resolver;
use antiphon_registry_etcd::{EtcdRegistry, Settings};
use antiphon_testing::conformance::registry::{PATIENCE, Seen, instance, register, unique};
use antiphon_testing::services::{PASSWORD, Service, USER, certificate_authority};
use tokio::time::timeout;

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
