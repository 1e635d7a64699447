//! Lists, watches, and what can go wrong with them.

use std::time::Duration;

use antiphon_config::HumanDuration;
use antiphon_discovery::{Answers, Instance, RegistryError, Resolver, State};
use antiphon_registry_kubernetes::{KubernetesResolver, Settings};
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::script::{ApiServer, Scripted, event, list, settings, slice};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

fn gone() -> Value {
    event(
        "ERROR",
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
            "message": "too old resource version: 1 (9)", "reason": "Expired", "code": 410}),
    )
}

fn watch(settings: Settings) -> Box<dyn Answers> {
    KubernetesResolver::new(settings).expect("they make sense").watch("shop/orders")
}

async fn next(answers: &mut Box<dyn Answers>) -> Result<Vec<Instance>, RegistryError> {
    timeout(PATIENCE, answers.next()).await.expect("an answer in time")
}

async fn addresses(answers: &mut Box<dyn Answers>) -> Vec<String> {
    let instances = next(answers).await.expect("an answer");
    instances.iter().map(|instance| instance.address.to_string()).collect()
}

#[tokio::test]
async fn slices_are_listed_and_then_watched_from_that_version_on() {
    let a = slice("a", 5, &[("10.0.0.1", true, false)]);
    let b = slice("b", 12, &[("10.0.0.2", true, false), ("10.0.0.3", false, false)]);
    let leaving = slice("a", 13, &[("10.0.0.1", false, true)]);
    let script = vec![
        Scripted::List(list(10, std::slice::from_ref(&a))),
        Scripted::Watch(
            vec![event("ADDED", &b), event("MODIFIED", &leaving), event("DELETED", &leaving)],
            true,
        ),
    ];
    let (server, address) = ApiServer::start(script).await;
    let mut answers = watch(settings(address));
    assert_eq!(addresses(&mut answers).await, ["10.0.0.1:8080"]);
    assert_eq!(addresses(&mut answers).await, ["10.0.0.1:8080", "10.0.0.2:8080"]);
    let instances = next(&mut answers).await.unwrap();
    assert_eq!(instances[0].state, State::Draining);
    assert_eq!(instances[1].zone.as_deref(), Some("z1"));
    assert_eq!(addresses(&mut answers).await, ["10.0.0.2:8080"]);
    let asked = server.asked();
    assert!(
        asked[0]
            .starts_with("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices?labelSelector=")
    );
    assert!(asked[1].contains("resourceVersion=10&"), "{}", asked[1]);
    assert!(asked[1].contains("allowWatchBookmarks=true"), "{}", asked[1]);
}

#[tokio::test]
async fn a_watch_that_ends_is_continued_where_the_bookmark_is() {
    let a = slice("a", 5, &[("10.0.0.1", true, false)]);
    let more = slice("a", 21, &[("10.0.0.1", true, false), ("10.0.0.2", true, false)]);
    let bookmark = json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"resourceVersion": "20"}, "endpoints": null, "ports": null});
    let script = vec![
        Scripted::List(list(10, &[a])),
        Scripted::Watch(vec![event("BOOKMARK", &bookmark)], false),
        Scripted::Watch(vec![event("MODIFIED", &more)], true),
    ];
    let (server, address) = ApiServer::start(script).await;
    let mut answers = watch(settings(address));
    assert_eq!(addresses(&mut answers).await, ["10.0.0.1:8080"]);
    assert_eq!(addresses(&mut answers).await, ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert!(server.asked()[2].contains("resourceVersion=20&"), "{:?}", server.asked());
}

#[tokio::test]
async fn a_history_that_is_gone_is_told_inside_of_a_success_and_all_is_listed_again() {
    let script = vec![
        Scripted::List(list(1, &[slice("a", 1, &[("10.0.0.1", true, false)])])),
        Scripted::Watch(vec![gone()], true),
        Scripted::List(list(9, &[slice("b", 9, &[("10.0.0.2", true, false)])])),
    ];
    let (server, address) = ApiServer::start(script).await;
    let mut answers = watch(settings(address));
    assert_eq!(addresses(&mut answers).await, ["10.0.0.1:8080"]);
    assert_eq!(addresses(&mut answers).await, ["10.0.0.2:8080"]);
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn a_server_that_ends_every_watch_at_once_is_not_asked_in_a_circle() {
    let a = slice("a", 1, &[("10.0.0.1", true, false)]);
    let mut script = vec![Scripted::List(list(1, &[a]))];
    script.extend((0..100).map(|_| Scripted::Watch(Vec::new(), false)));
    let (server, address) = ApiServer::start(script).await;
    let mut answers = watch(settings(address));
    assert_eq!(addresses(&mut answers).await, ["10.0.0.1:8080"]);
    let change = timeout(Duration::from_millis(2_500), answers.next()).await;
    assert!(change.is_err(), "{change:?}");
    let asked = server.asked().len();
    assert!((3..=4).contains(&asked), "{asked} questions in two and a half seconds");
}

#[tokio::test]
async fn a_refusal_is_told_with_what_to_do_and_a_failure_never_empties_the_list() {
    let script = vec![
        Scripted::Refusal(StatusCode::FORBIDDEN),
        Scripted::Refusal(StatusCode::SERVICE_UNAVAILABLE),
        Scripted::List(list(1, &[slice("a", 1, &[("10.0.0.1", true, false)])])),
        Scripted::Refusal(StatusCode::INTERNAL_SERVER_ERROR),
        Scripted::List(list(2, &[])),
    ];
    let (_server, address) = ApiServer::start(script).await;
    let mut answers = watch(settings(address));
    let error = next(&mut answers).await.unwrap_err();
    assert!(error.is_refused() && error.to_string().contains("endpointslices"), "{error}");
    assert!(!next(&mut answers).await.unwrap_err().is_refused());
    assert_eq!(addresses(&mut answers).await, ["10.0.0.1:8080"]);
    assert!(next(&mut answers).await.is_err());
    assert_eq!(addresses(&mut answers).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_watch_that_says_nothing_for_too_long_is_given_up() {
    let script = vec![Scripted::List(list(1, &[])), Scripted::Watch(Vec::new(), true)];
    let (_server, address) = ApiServer::start(script).await;
    let watch_timeout = HumanDuration::from_secs(1);
    let mut answers = watch(Settings { watch_timeout, ..settings(address) });
    assert!(next(&mut answers).await.unwrap().is_empty());
    let error = next(&mut answers).await.unwrap_err();
    assert!(error.to_string().contains("said nothing for 1.25s"), "{error}");
}

#[tokio::test]
async fn the_token_is_read_for_each_question() {
    let script = vec![Scripted::List(list(1, &[])), Scripted::List(list(2, &[]))];
    let (server, address) = ApiServer::start(script).await;
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, "first\n").unwrap();
    let mut answers = watch(Settings { token_file: Some(token_file.clone()), ..settings(address) });
    next(&mut answers).await.unwrap();
    std::fs::write(&token_file, "second\n").unwrap();
    answers.look_again();
    next(&mut answers).await.unwrap();
    assert_eq!(*server.tokens.lock(), ["Bearer first", "Bearer second"]);
}

#[tokio::test]
async fn a_name_that_is_none_of_kubernetes_is_an_error() {
    let resolver = KubernetesResolver::new(Settings::default()).unwrap();
    let mut answers = resolver.watch("Shop/Orders");
    assert!(next(&mut answers).await.unwrap_err().is_refused());
}
