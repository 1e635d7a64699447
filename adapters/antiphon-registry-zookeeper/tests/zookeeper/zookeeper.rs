//! What is special about ZooKeeper.

use antiphon_discovery::Standing;
use antiphon_registry_zookeeper::{Settings, ZookeeperRegistry};
use antiphon_testing::conformance::registry::{PATIENCE, Seen, instance, register, unique};
use antiphon_testing::services::Service;
use tokio::time::timeout;
use zookeeper_client::Client;

fn open() -> ZookeeperRegistry {
    ZookeeperRegistry::new(Settings::new(Service::Zookeeper.url())).expect("they make sense")
}

async fn client() -> Client {
    let url = Service::Zookeeper.url();
    Client::connect(url.trim_start_matches("zookeeper://")).await.expect("a session")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_somebody_removes_is_written_again() {
    let registry = open();
    let service = unique("removed");
    let registration = register(&registry, &service, instance("10.0.0.1:80")).await;
    let mut seen = Seen::new(&registry, &service);
    seen.until(&["10.0.0.1:80"]).await;
    let mut standing = registration.follow();
    standing.mark_unchanged();
    let node = format!("/antiphon/services/{service}/10.0.0.1:80");
    client().await.delete(&node, None).await.expect("it is removed by hand");
    timeout(PATIENCE, standing.changed()).await.expect("in time").expect("it is kept");
    timeout(PATIENCE, registration.held()).await.expect("it is written again");
    let mut fresh = Seen::new(&registry, &service);
    fresh.until(&["10.0.0.1:80"]).await;
    registration.deregister().await.expect("it is removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_living_processes_at_one_address_do_not_fight() {
    let (first, second) = (open(), open());
    let service = unique("fight");
    let old = register(&first, &service, instance("10.0.0.1:80")).await;
    let mut changed = instance("10.0.0.1:80");
    changed.weight = 2;
    let new = register(&second, &service, changed.clone()).await;
    let mut standing = old.follow();
    let refused = standing.wait_for(|standing| {
        matches!(standing, Standing::Missing { trouble: Some(trouble) } if trouble.is_refused())
    });
    timeout(PATIENCE, refused).await.expect("in time").expect("it is kept");
    assert!(matches!(new.standing(), Standing::Held));
    assert_eq!(Seen::new(&first, &service).until(&["10.0.0.1:80"]).await, [changed]);
    new.deregister().await.expect("it is removed");
    // The address is free again, and the other one takes it.
    timeout(PATIENCE, old.held()).await.expect("it is held again");
    old.deregister().await.expect("it is removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_instance_takes_no_others_with_it() {
    let registry = open();
    let service = unique("nonsense");
    let registration = register(&registry, &service, instance("10.0.0.1:80")).await;
    let client = client().await;
    let node = format!("/antiphon/services/{service}/nonsense");
    let acls = zookeeper_client::Acls::anyone_all();
    let options = zookeeper_client::CreateMode::Persistent.with_acls(acls);
    client.create(&node, b"nonsense", &options).await.expect("it is written by hand");
    Seen::new(&registry, &service).until(&["10.0.0.1:80"]).await;
    client.delete(&node, None).await.expect("it is removed");
    registration.deregister().await.expect("it is removed");
}
