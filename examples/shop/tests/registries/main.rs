//! The shop with several instances of each service that find each other in real registries and through
//! a real name server.

#![cfg(feature = "engines")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "../e2e/fleet.rs"]
mod fleet;
#[expect(dead_code, reason = "what the other tests of the shop need as well")]
#[path = "../e2e/harness.rs"]
mod harness;

mod names;

use antiphon_testing::services::{Private, Service};

use fleet::{SERVICE, instances_come_and_go};

/// Settings under which every process registers and finds the others.
fn settings(registry: &str, more: &str) -> String {
    format!("[discovery]\nregistry = \"{registry}\"\n[registries.{registry}]\n{more}")
}

/// A place of this run alone.
fn place() -> String {
    format!("/shop-{}-{}", std::process::id(), fastrand::u32(..))
}

#[tokio::test]
async fn instances_registered_at_etcd_come_and_go() {
    let (url, prefix) = (Service::Etcd.url(), place());
    let more = format!("endpoints = [{url:?}]\nlease = \"3s\"\nprefix = {prefix:?}\n");
    instances_come_and_go(&settings("etcd", &more), ()).await;
}

#[tokio::test]
async fn instances_registered_at_zookeeper_come_and_go() {
    let (url, root) = (Service::Zookeeper.url(), place());
    let more = format!(
        "url = {url:?}\nlease = \"4s\"\nroot = {root:?}\n\
         [clients.\"{SERVICE}\"]\ntarget = \"zookeeper:///{SERVICE}\"\n"
    );
    instances_come_and_go(&settings("zookeeper", &more), ()).await;
}

/// In a Consul of its own: there, nothing keeps the names of two shops apart.
#[tokio::test]
async fn instances_registered_at_consul_come_and_go() {
    let consul = Private::start(Service::Consul).await.unwrap();
    let more = format!("url = {:?}\nlease = \"5s\"\n", consul.url());
    instances_come_and_go(&settings("consul", &more), ()).await;
}
