//! What is special about ZooKeeper.

use std::time::Duration;

use antiphon_config::HumanDuration;
use antiphon_discovery::{Held, Registrar, RegistryError, Resolver, Standing};
use antiphon_registry_zookeeper::{Settings, ZookeeperRegistry};
use antiphon_testing::conformance::registry::{PATIENCE, Seen, instance, register, unique};
use antiphon_testing::proxy::{Faults, Proxy, Way};
use antiphon_testing::services::Service;
use tokio::time::{Instant, timeout};
use zookeeper_client::Client;

use crate::server::Server;

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

/// The server has written the node, and the answer is on its way, when the entry is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_being_written_when_it_was_given_up_is_removed() {
    let proxy = Proxy::in_front_of(&Service::Zookeeper.url()).await.expect("a proxy");
    let near = ZookeeperRegistry::new(Settings::new(proxy.url())).expect("they make sense");
    let far = open();
    let service = unique("given-up");
    // It has its session, and the node of the service is there.
    let first = register(&near, &service, instance("10.0.0.1:80")).await;
    let mut seen = Seen::new(&far, &service);
    seen.until(&["10.0.0.1:80"]).await;
    let mut entry = near.entry(&service);
    let (held, _written) = Held::new();
    let late = Way { hold: true, ..Way::default() };
    proxy.set(Faults { to_client: late, ..Faults::default() });
    {
        let second = instance("10.0.0.2:80");
        let hold = entry.hold(&second, &held);
        tokio::select! {
            error = hold => panic!("nothing is answered: {error}"),
            _ = seen.until(&["10.0.0.1:80", "10.0.0.2:80"]) => {}
        }
    }
    proxy.heal();
    timeout(PATIENCE, entry.remove()).await.expect("in time").expect("it is removed");
    seen.until(&["10.0.0.1:80"]).await;
    first.deregister().await.expect("it is removed");
}

/// A server grants less than it is asked for. When it is away, that time counts: by the time that was
/// asked for the session would have expired long before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_missing_by_the_time_that_the_server_granted() {
    let server = Server::start(Duration::from_secs(4)).await;
    let settings = Settings { lease: HumanDuration::from_secs(600), ..Settings::new(server.url()) };
    let registry = ZookeeperRegistry::new(settings).expect("they make sense");
    let mut entry = registry.entry("orders");
    let (one, (held, _written)) = (instance("10.0.0.1:80"), Held::new());
    let hold = entry.hold(&one, &held);
    let (error, ()) = timeout(PATIENCE, async { tokio::join!(hold, server.stop_when_watched()) })
        .await
        .expect("in time");
    assert!(matches!(error, RegistryError::Away { .. }), "{error}");
    assert!(error.to_string().contains("two thirds"), "{error}");
}

/// Whoever waits for a session while another one tries to get it has its answer when that has failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_wait_for_a_silent_server_do_not_wait_one_after_the_other() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("zookeeper://{}", silent.local_addr().expect("its address"));
    let connect_timeout = HumanDuration::from_secs(1);
    let registry = ZookeeperRegistry::new(Settings { connect_timeout, ..Settings::new(url) });
    let registry = registry.expect("they make sense");
    let begun = Instant::now();
    let mut watching = tokio::task::JoinSet::new();
    for number in 0..20 {
        let mut answers = registry.watch(&number.to_string());
        watching.spawn(async move { answers.next().await.is_err() });
    }
    assert!(watching.join_all().await.into_iter().all(|failed| failed), "nobody is there");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
