//! Several instances, and the end of one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use antiphon_core::Component;
use antiphon_outbox::{Database, LeaseStore, RelaySettings};
use antiphon_telemetry::metrics::Exposition;
use antiphon_testing::memory_store::Fault;

use crate::fixture::{World, ms, secs, wait};

/// How many lanes are free.
async fn free_lanes(world: &World) -> usize {
    let probe = "probe";
    let leases = world.store.acquire("outbox", 16, 16, probe, secs(1)).await.unwrap();
    world.store.release(&leases).await.unwrap();
    leases.len()
}

async fn held_by(world: &World, relay: &str) -> i64 {
    let text = world.telemetry.metrics(Exposition::Prometheus);
    let line = format!("outbox_lanes{{service=\"{relay}\"}} ");
    text.lines()
        .find_map(|l| l.strip_prefix(&line))
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(-1)
}

#[tokio::test(start_paused = true)]
async fn instances_share_the_lanes_and_take_over_from_one_that_leaves() {
    let world = World::new();
    let one = world.relay_on(&Database::new("one", world.store.clone()), Default::default());
    wait(secs(1)).await;
    assert_eq!(held_by(&world, "one").await, 16);
    let two = world.relay_on(&Database::new("two", world.store.clone()), Default::default());
    let _three = world.relay_on(&Database::new("three", world.store.clone()), Default::default());
    wait(secs(6)).await;
    let shares = [
        held_by(&world, "one").await,
        held_by(&world, "two").await,
        held_by(&world, "three").await,
    ];
    assert_eq!(shares.iter().sum::<i64>(), 16, "{shares:?}");
    assert!(shares.iter().all(|share| (4..=6).contains(share)), "{shares:?}");
    one.handle.drain(secs(5));
    one.task.await.unwrap();
    two.handle.drain(secs(5));
    two.task.await.unwrap();
    wait(secs(3)).await;
    assert_eq!(held_by(&world, "three").await, 16, "no lease had to run out");
}

#[tokio::test(start_paused = true)]
async fn the_lanes_of_a_crashed_instance_are_taken_over_within_a_lease() {
    let world = World::new();
    let one = world.relay();
    wait(secs(1)).await;
    one.task.abort();
    world.emit("orders", "a", "1").await;
    let _two = world.relay();
    let begun = tokio::time::Instant::now();
    world.settle().await;
    let limit = RelaySettings::default().lease_ttl + secs(1);
    assert!(begun.elapsed() <= limit, "it took {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_lost_its_lanes_forgets_them_and_joins_in_again() {
    let world = World::new();
    let cut_off = Arc::new(AtomicBool::new(false));
    let is_cut_off = Arc::clone(&cut_off);
    let store = world.store.opened_with(Arc::new(move |_| {
        if is_cut_off.load(Ordering::Relaxed) { Fault::Fails } else { Fault::None }
    }));
    let _one = world.relay_on(&Database::new("one", store), Default::default());
    wait(secs(1)).await;
    cut_off.store(true, Ordering::Relaxed);
    let _two = world.relay_on(&Database::new("two", world.store.clone()), Default::default());
    wait(secs(20)).await;
    assert_eq!(held_by(&world, "two").await, 16);
    cut_off.store(false, Ordering::Relaxed);
    wait(secs(10)).await;
    assert_eq!((held_by(&world, "one").await, held_by(&world, "two").await), (8, 8));
    for n in 0..64 {
        world.emit("orders", &format!("k{n}"), &n.to_string()).await;
    }
    wait(secs(1)).await;
    assert_eq!(world.broker.log().len(), 64, "every lane has a publisher");
}

#[tokio::test(start_paused = true)]
async fn no_message_is_published_by_two_instances_while_lanes_move() {
    let world = World::new();
    let mut relays = Vec::new();
    for n in 0..60 {
        if n % 10 == 0 {
            relays.push(world.relay());
        }
        for key in 0..8 {
            world.emit("orders", &format!("k{key}"), &n.to_string()).await;
        }
        wait(ms(500)).await;
    }
    world.settle().await;
    assert_eq!(world.broker.log().len(), 480);
}

#[tokio::test(start_paused = true)]
async fn a_drain_publishes_what_is_committed_and_gives_the_lanes_back() {
    let world = World::new();
    let relay = world.relay();
    wait(secs(1)).await;
    for n in 0..2_000 {
        world.emit("orders", &format!("k{}", n % 50), &n.to_string()).await;
    }
    relay.handle.drain(secs(10));
    relay.task.await.unwrap();
    assert_eq!(world.broker.log().len(), 2_000);
    assert_eq!(world.backlog().await, 0);
    assert_eq!(free_lanes(&world).await, 16);
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_broker_that_is_away() {
    let world = World::new();
    world.broker.react(|_| {
        crate::fixture::Reaction::Refuse(antiphon_messaging::PublishErrorKind::Disconnected)
    });
    let relay = world.relay();
    world.emit("orders", "a", "1").await;
    wait(secs(10)).await;
    let begun = tokio::time::Instant::now();
    relay.handle.drain(secs(10));
    relay.task.await.unwrap();
    assert!(begun.elapsed() < secs(10), "it took {:?}", begun.elapsed());
    assert_eq!(world.backlog().await, 1, "it stays for the next process");
    assert_eq!(free_lanes(&world).await, 16);
}

#[tokio::test(start_paused = true)]
async fn a_cut_ends_the_relay_at_once() {
    let world = World::new();
    world.broker.react(|_| crate::fixture::Reaction::Hang);
    let relay = world.relay();
    world.emit("orders", "a", "1").await;
    wait(secs(1)).await;
    relay.handle.cut();
    tokio::time::timeout(secs(1), relay.task).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_relay_says_its_name_and_stage() {
    let world = World::new();
    let broker = antiphon_messaging::AnyBroker::new(world.broker.clone());
    let relay = antiphon_outbox::Relay::new(&world.database, broker, &world.telemetry);
    assert_eq!((relay.name(), relay.stage()), ("relay orders", antiphon_core::Stage::Relay));
}
