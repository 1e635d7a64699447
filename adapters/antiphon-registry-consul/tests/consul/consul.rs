//! What is special about Consul.

use std::time::Duration;

use antiphon_config::{HumanDuration, TlsFiles};
use antiphon_discovery::{Held, Registrar, Resolver};
use antiphon_registry_consul::{ConsulRegistry, Settings};
use antiphon_registry_http::{HttpClient, Question};
use antiphon_testing::conformance::registry::{PATIENCE, Seen, instance, register, unique};
use antiphon_testing::services::{PASSWORD, Service, USER, certificate_authority};
use hyper::{Method, StatusCode};
use serde_json::json;
use tokio::time::timeout;

use crate::agent::Agent;

fn open(agent: &Agent) -> ConsulRegistry {
    ConsulRegistry::new(Settings::new(agent.url())).expect("the settings make sense")
}

#[tokio::test]
async fn an_index_that_goes_backwards_is_forgotten() {
    let agent = Agent::new().await;
    let registry = open(&agent);
    let mut seen = Seen::new(&registry, "orders");
    let one = register(&registry, "orders", instance("10.0.0.1:80")).await;
    seen.until(&["10.0.0.1:80"]).await;
    // Whoever waited for the great index would never hear of anything again.
    agent.tell_index(Some(1_000_000));
    agent.tell_index(None);
    let two = register(&registry, "orders", instance("10.0.0.2:80")).await;
    seen.until(&["10.0.0.1:80", "10.0.0.2:80"]).await;
    one.deregister().await.expect("it is removed");
    two.deregister().await.expect("it is removed");
}

#[tokio::test]
async fn an_index_that_never_waits_is_not_asked_in_a_circle() {
    let agent = Agent::new().await;
    let registry = open(&agent);
    agent.tell_index(Some(0));
    let mut answers = registry.watch("orders");
    answers.next().await.expect("the first answer");
    let change = timeout(Duration::from_secs(2), answers.next()).await;
    assert!(change.is_err(), "nothing has changed");
    assert!(agent.queries() <= 14, "{} queries in two seconds", agent.queries());
}

#[tokio::test]
async fn changes_of_other_services_are_no_news() {
    let agent = Agent::new().await;
    let registry = open(&agent);
    let mut answers = registry.watch("orders");
    answers.next().await.expect("the first answer");
    let other = register(&registry, "points", instance("10.0.0.1:80")).await;
    let change = timeout(Duration::from_secs(1), answers.next()).await;
    assert!(change.is_err(), "{change:?}");
    other.deregister().await.expect("it is removed");
}

#[tokio::test]
async fn a_refused_token_is_told_with_what_to_do() {
    let agent = Agent::new().await;
    let registry = open(&agent);
    agent.refuse(Some((StatusCode::FORBIDDEN, "Permission denied")));
    let mut answers = registry.watch("orders");
    let error = timeout(PATIENCE, answers.next()).await.expect("soon").expect_err("refused");
    assert!(error.is_refused() && error.to_string().contains("correct the token"), "{error}");
    agent.refuse(Some((StatusCode::INTERNAL_SERVER_ERROR, "No cluster leader")));
    let error = timeout(PATIENCE, answers.next()).await.expect("soon").expect_err("away");
    assert!(!error.is_refused() && error.to_string().contains("leader"), "{error}");
    agent.refuse(None);
    assert!(answers.next().await.expect("an answer").is_empty());
}

#[tokio::test]
async fn a_token_that_sees_nothing_is_refused_and_not_told_that_there_is_nobody() {
    let agent = Agent::new().await;
    let registry = open(&agent);
    let registration = register(&registry, "orders", instance("10.0.0.1:80")).await;
    let mut answers = registry.watch("orders");
    assert_eq!(answers.next().await.expect("an answer").len(), 1);
    agent.hide(true);
    let error = timeout(PATIENCE, answers.next()).await.expect("soon").expect_err("refused");
    assert!(error.is_refused() && error.to_string().contains("service:read"), "{error}");
    agent.hide(false);
    assert_eq!(answers.next().await.expect("an answer").len(), 1);
    registration.deregister().await.expect("it is removed");
}

#[tokio::test]
async fn what_is_still_on_its_way_when_it_is_removed_does_not_stay() {
    let agent = Agent::new().await;
    let registry = open(&agent);
    agent.be_slow();
    let mut entry = registry.entry("orders");
    let (instance, (held, _written)) = (instance("10.0.0.1:80"), Held::new());
    tokio::select! {
        error = entry.hold(&instance, &held) => panic!("{error}"),
        () = agent.on_its_way() => {}
    }
    entry.remove().await.expect("it is removed");
    assert_eq!(agent.services(), 0);
}

/// An agent's API, for what other programs do with it.
fn curl() -> HttpClient {
    let servers = [Service::Consul.url()];
    HttpClient::new("url", &servers, &TlsFiles::default(), Duration::from_secs(2))
        .expect("a client")
}

async fn put(path: &str, body: &serde_json::Value) {
    let question = Question::new(Method::PUT, path).with_body(body.to_string());
    let answer = curl().ask(question, PATIENCE).await.expect("an answer");
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.words());
}

#[tokio::test]
async fn what_other_programs_register_is_found() {
    let registry =
        ConsulRegistry::new(Settings::new(Service::Consul.url())).expect("they are fine");
    let service = unique("foreign");
    let said = json!({
        "ID": service, "Name": service, "Port": 8080, "Meta": {"version": "2"},
        "Weights": {"Passing": 5, "Warning": 1},
    });
    put("/v1/agent/service/register", &said).await;
    let instances = Seen::new(&registry, &service).next().await;
    assert_eq!(instances.len(), 1);
    assert_eq!(instances[0].address.to_string(), "127.0.0.1:8080");
    assert_eq!((instances[0].weight, instances[0].metadata["version"].as_str()), (5, "2"));
    put(&format!("/v1/agent/service/deregister/{service}"), &json!(null)).await;
}

#[tokio::test]
async fn what_somebody_removes_is_registered_again() {
    let lease = HumanDuration::from_secs(2);
    let settings = Settings { lease, ..Settings::new(Service::Consul.url()) };
    let registry = ConsulRegistry::new(settings).expect("they are fine");
    let service = unique("removed");
    let registration = register(&registry, &service, instance("a:80")).await;
    let mut standing = registration.follow();
    standing.mark_unchanged();
    put(&format!("/v1/agent/service/deregister/{service}%40a%3A80"), &json!(null)).await;
    timeout(PATIENCE, standing.changed()).await.expect("in time").expect("it is kept");
    timeout(PATIENCE, registration.held()).await.expect("it is registered again");
    Seen::new(&registry, &service).until(&["a:80"]).await;
    registration.deregister().await.expect("it is removed");
}

#[tokio::test]
async fn it_speaks_tls() {
    let url = Service::Consul.tls_url().replace(&format!("{USER}:{PASSWORD}@"), "");
    let ca_file = Some(certificate_authority());
    let registry = ConsulRegistry::new(Settings { ca_file, ..Settings::new(url) });
    let registry = registry.expect("they are fine");
    let service = unique("tls");
    let registration = register(&registry, &service, instance("10.0.0.1:80")).await;
    Seen::new(&registry, &service).until(&["10.0.0.1:80"]).await;
    registration.deregister().await.expect("it is removed");
}

#[tokio::test]
async fn metadata_that_consul_cannot_keep_is_refused() {
    let agent = Agent::new().await;
    let registry = open(&agent);
    let mut odd = instance("10.0.0.1:80");
    odd.metadata.insert("a.b".to_owned(), "1".to_owned());
    let settings = antiphon_discovery::RegistrationSettings::default();
    let registration = antiphon_discovery::Registration::start(&registry, "orders", odd, settings);
    let mut standing = registration.follow();
    let refused = standing.wait_for(|standing| {
        use antiphon_discovery::Standing::Missing;
        matches!(standing, Missing { trouble: Some(trouble) } if trouble.is_refused())
    });
    timeout(PATIENCE, refused).await.expect("soon").expect("it is kept");
}
