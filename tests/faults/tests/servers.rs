//! Every server survives everything that a nemesis does to it, once it is over.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

use std::time::Duration;

use fault_tests::engine::{BrokerKind, Engine, StoreKind};
use fault_tests::nemesis::server;
use fault_tests::plan::{Fault, Kind, Side};

/// Does everything to the servers of a pair, one after the other, and heals.
async fn survives(store: StoreKind, broker: BrokerKind) {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::start(folder.path(), store, broker).await.unwrap();
    for side in [Side::Store, Side::Broker] {
        let Some(hit) = engine.server(side) else { continue };
        let kinds = engine.kinds();
        let faults = kinds.into_iter().filter_map(|kind| match kind {
            Kind::Restart(of) if of == side => Some(Fault::Restart(side)),
            Kind::Crash(of) if of == side => Some(Fault::Crash(side)),
            Kind::Freeze(of) if of == side => Some(Fault::Freeze(side)),
            Kind::Disconnect(of) if of == side => Some(Fault::Disconnect(side)),
            Kind::Fill(of) if of == side => Some(Fault::Fill(side)),
            _ => None,
        });
        for fault in faults {
            let done = server(hit, fault, Duration::from_millis(300)).await;
            done.unwrap_or_else(|error| panic!("{fault}: {error}"));
            engine.heal().await.unwrap_or_else(|error| panic!("after {fault}: {error}"));
        }
        if let Some(disk) = &hit.disk {
            assert_eq!(disk.filled(), 1, "{side}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_and_nats() {
    survives(StoreKind::Postgres, BrokerKind::Nats).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_and_redis() {
    survives(StoreKind::Mariadb, BrokerKind::Redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq() {
    survives(StoreKind::Sqlite, BrokerKind::Rabbitmq).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka() {
    survives(StoreKind::Sqlite, BrokerKind::Kafka).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mosquitto() {
    survives(StoreKind::Sqlite, BrokerKind::Mqtt).await;
}
