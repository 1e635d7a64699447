//! What a real API server does, and no script would.

use std::time::Duration;

use antiphon_config::HumanDuration;
use antiphon_discovery::{Answers, Instance, RegistryError, Resolver, State};
use antiphon_registry_kubernetes::{KubernetesResolver, Settings};
use antiphon_testing::services::{Private, Service, certificate_authority};
use serde_json::json;
use tokio::time::timeout;

use crate::cluster::{ADMIN, Cluster, GUEST, endpoint};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

fn watch(cluster: &Cluster, settings: Settings) -> Box<dyn Answers> {
    KubernetesResolver::new(settings).expect("they make sense").watch(&cluster.name())
}

async fn next(answers: &mut Box<dyn Answers>) -> Result<Vec<Instance>, RegistryError> {
    timeout(PATIENCE, answers.next()).await.expect("an answer in time")
}

/// Waits until these are told.
async fn until(answers: &mut Box<dyn Answers>, expected: &[&str]) -> Vec<Instance> {
    let told = timeout(PATIENCE, async {
        loop {
            let Ok(instances) = answers.next().await else { continue };
            if instances
                .iter()
                .map(|instance| instance.address.to_string())
                .eq(expected.iter().copied())
            {
                return instances;
            }
        }
    });
    told.await.expect("they are told in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_zones_and_several_slices_are_understood() {
    let cluster = Cluster::at(&Service::Kubernetes.url()).await;
    cluster.hosts("orders-1", &["10.0.0.1"]);
    let mut answers = watch(&cluster, cluster.settings(ADMIN));
    until(&mut answers, &["10.0.0.1:8080"]).await;
    let leaving = json!({"ready": false, "serving": true, "terminating": true});
    let endpoints =
        json!([endpoint("10.0.0.2", leaving), endpoint("10.0.0.3", json!({"ready": false}))]);
    cluster.slice("orders-2", &endpoints);
    let instances = until(&mut answers, &["10.0.0.1:8080", "10.0.0.2:8080"]).await;
    assert_eq!((instances[0].state, instances[1].state), (State::Serving, State::Draining));
    assert_eq!(instances[1].zone.as_deref(), Some("z1"));
    assert_eq!(instances[1].metadata["node"], "n1");
    cluster.remove_slice("orders-1");
    until(&mut answers, &["10.0.0.2:8080"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_needs_the_role_that_the_readme_names_and_no_more() {
    let cluster = Cluster::at(&Service::Kubernetes.url()).await;
    cluster.hosts("orders-1", &["10.0.0.1"]);
    let mut answers = watch(&cluster, cluster.settings(GUEST));
    let refused = next(&mut answers).await.expect_err("it may not");
    assert!(refused.is_refused() && refused.to_string().contains("endpointslices"), "{refused}");

    let of = |what| {
        format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/{what}", cluster.namespace)
    };
    let rules = json!([{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"],
        "verbs": ["get", "list", "watch"]}]);
    cluster.create(&of("roles"), &json!({"metadata": {"name": "callers"}, "rules": rules}));
    let group = "rbac.authorization.k8s.io";
    let binding = json!({"metadata": {"name": "callers"},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "callers"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": GUEST}]});
    cluster.create(&of("rolebindings"), &binding);
    until(&mut answers, &["10.0.0.1:8080"]).await;
    cluster.hosts("orders-1", &["10.0.0.2"]);
    until(&mut answers, &["10.0.0.2:8080"]).await;

    let mut stranger = watch(&cluster, cluster.settings("nobody"));
    assert!(next(&mut stranger).await.expect_err("nobody knows it").is_refused());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_reached_over_tls_by_its_own_authority() {
    let cluster = Cluster::at(&Service::Kubernetes.url()).await;
    cluster.hosts("orders-1", &["10.0.0.1"]);
    let url = Service::Kubernetes.tls_url();
    let (_, host) = url.split_once('@').expect("a user before the host");
    let settings = Settings {
        url: format!("https://{host}"),
        ca_file: Some(certificate_authority()),
        ..cluster.settings(ADMIN)
    };
    let mut answers = watch(&cluster, settings.clone());
    until(&mut answers, &["10.0.0.1:8080"]).await;
    let mut distrustful = watch(&cluster, Settings { ca_file: None, ..settings });
    assert!(next(&mut distrustful).await.is_err(), "no public authority signed it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_is_continued_when_its_time_is_over() {
    let cluster = Cluster::at(&Service::Kubernetes.url()).await;
    cluster.hosts("orders-1", &["10.0.0.1"]);
    let watch_timeout = HumanDuration::from_secs(1);
    let mut answers = watch(&cluster, Settings { watch_timeout, ..cluster.settings(ADMIN) });
    until(&mut answers, &["10.0.0.1:8080"]).await;
    let quiet = timeout(Duration::from_secs(3), answers.next()).await;
    assert!(quiet.is_err(), "the end of a watch is nothing that callers hear of: {quiet:?}");
    cluster.hosts("orders-1", &["10.0.0.2"]);
    until(&mut answers, &["10.0.0.2:8080"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_restarted_and_forgot_the_history_is_listed_anew() {
    let server = Private::start(Service::Kubernetes).await.expect("a server");
    let cluster = Cluster::at(&server.url()).await;
    cluster.hosts("orders-1", &["10.0.0.1"]);
    let mut answers = watch(&cluster, cluster.settings(ADMIN));
    until(&mut answers, &["10.0.0.1:8080"]).await;
    cluster.fail(true);
    cluster.hosts("orders-1", &["10.0.0.2"]);
    server.kill().await.expect("it is killed");
    server.start_again().await.expect("it comes back");
    let from_the_beginning =
        format!("{}?watch=true&resourceVersion=1&timeoutSeconds=1", cluster.slices());
    let (_, said) = cluster.ask("GET", &from_the_beginning, "application/json", "");
    assert!(said.contains("\"code\":410"), "it remembers all of it: {said}");
    cluster.fail(false);
    until(&mut answers, &["10.0.0.2:8080"]).await;
}
