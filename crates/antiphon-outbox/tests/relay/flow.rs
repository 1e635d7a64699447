//! Order, outages, delays, and that nothing waits for what it need not wait for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use antiphon_messaging::{Message, PublishErrorKind};
use antiphon_outbox::{KeyPolicy, OutboxStore, RelaySettings};

use crate::fixture::{Reaction, TestBroker, World, body, ms, secs, wait};

/// The numbers that each key was first delivered with, in order.
fn first_deliveries(log: &[Message]) -> BTreeMap<String, Vec<u32>> {
    let mut seen = BTreeSet::new();
    let mut order: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for message in log.iter().filter(|message| seen.insert(message.id)) {
        order.entry(message.key.clone()).or_default().push(body(message).parse().unwrap());
    }
    order
}

#[tokio::test(start_paused = true)]
async fn keys_keep_their_order_whatever_fails_in_between() {
    for seed in 0..20 {
        let world = World::new();
        let mut random = fastrand::Rng::with_seed(seed);
        // What fails stops its key for the rest of the batch, as rule 3 of the broker wants.
        let mut failed_at: BTreeMap<String, tokio::time::Instant> = BTreeMap::new();
        world.broker.react(move |message| {
            let now = tokio::time::Instant::now();
            if failed_at.get(&message.key) == Some(&now) {
                return Reaction::Refuse(PublishErrorKind::Disconnected);
            }
            match random.u32(0..20) {
                0 => {
                    failed_at.insert(message.key.clone(), now);
                    Reaction::TakeSilently
                }
                1 => {
                    failed_at.insert(message.key.clone(), now);
                    Reaction::Refuse(PublishErrorKind::Disconnected)
                }
                _ => Reaction::Take,
            }
        });
        let _relay = world.relay();
        for n in 0..300_u32 {
            world.emit("orders", &format!("k{}", n % 5), &n.to_string()).await;
            if n % 7 == 0 {
                wait(ms(3)).await;
            }
        }
        world.settle().await;
        let order = first_deliveries(&world.broker.log());
        assert_eq!(order.values().map(Vec::len).sum::<usize>(), 300, "seed {seed}");
        for (key, numbers) in order {
            assert!(numbers.is_sorted(), "seed {seed}, key {key}: {numbers:?}");
        }
        assert!(world.broker.log().len() > 300, "seed {seed}: nothing was repeated");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_the_later_rows_of_the_key_go_again() {
    let world = World::new();
    let mut failed = false;
    world.broker.react(move |message| {
        if message.body == "1" && !std::mem::replace(&mut failed, true) {
            Reaction::Refuse(PublishErrorKind::Disconnected)
        } else {
            Reaction::Take
        }
    });
    for n in 1..=3 {
        world.emit("orders", "a", &n.to_string()).await;
    }
    let _relay = world.relay();
    world.settle().await;
    // The broker broke rule 3; the last deliveries are in order all the same.
    assert_eq!(world.broker.bodies(), ["2", "3", "1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn a_message_committed_late_is_not_skipped() {
    let world = World::new();
    let _relay = world.relay();
    // Three transactions draw their numbers in order and commit in reverse; one rolls back.
    let mut open = Vec::new();
    for n in 1..=4 {
        let mut tx = world.database.begin().await.unwrap();
        let message = world.message("orders", &format!("k{n}"), &n.to_string());
        world.store.append(tx.connection(), &[message]).await.unwrap();
        open.push(tx);
    }
    wait(secs(1)).await;
    for (n, tx) in open.into_iter().enumerate().rev() {
        if n != 1 {
            tx.commit().await.unwrap();
        }
        wait(ms(700)).await;
    }
    world.settle().await;
    wait(secs(1)).await;
    assert_eq!(world.broker.bodies(), ["4", "3", "1"]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_counts_nothing_and_ends_by_itself() {
    let world = World::new();
    let down = Arc::new(AtomicBool::new(true));
    let is_down = Arc::clone(&down);
    world.broker.react(move |_| {
        if is_down.load(Ordering::Relaxed) {
            Reaction::Refuse(PublishErrorKind::Disconnected)
        } else {
            Reaction::Take
        }
    });
    let _relay = world.relay();
    for n in 0..100 {
        world.emit("orders", &format!("k{}", n % 9), &n.to_string()).await;
    }
    wait(secs(600)).await;
    assert!(world.broker.log().is_empty());
    down.store(false, Ordering::Relaxed);
    let healed = tokio::time::Instant::now();
    world.settle().await;
    assert!(healed.elapsed() < secs(7), "it took {:?}", healed.elapsed());
    assert!(world.store.buried(1).await.unwrap().is_empty());
    assert!(first_deliveries(&world.broker.log()).values().all(|numbers| numbers.is_sorted()));
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_down_does_not_hold_up_the_others() {
    let settings = RelaySettings { window: 16, batch_max: 8, ..RelaySettings::default() };
    let world = World::new();
    let down = Arc::new(AtomicBool::new(true));
    let is_down = Arc::clone(&down);
    world.broker.react(move |message| {
        if message.topic == "down" && is_down.load(Ordering::Relaxed) {
            Reaction::Refuse(PublishErrorKind::Unroutable)
        } else {
            Reaction::Take
        }
    });
    let _relay = world.relay_with(settings);
    // Far more than a lane holds in memory, all of one lane, in front of the other topic.
    for n in 0..400 {
        world.emit("down", "a", &n.to_string()).await;
    }
    wait(secs(1)).await;
    for n in 0..50 {
        world.emit("up", "a", &n.to_string()).await;
        wait(ms(20)).await;
    }
    wait(secs(3)).await;
    let up: Vec<_> = (0..50).map(|n| n.to_string()).collect();
    assert_eq!(world.broker.bodies(), up);
    down.store(false, Ordering::Relaxed);
    world.settle().await;
    let log = world.broker.log();
    let late: Vec<_> = log.iter().filter(|message| message.topic == "down").map(body).collect();
    assert_eq!(late, (0..400).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_halted_waits_and_no_other_does() {
    let world = World::new();
    let repaired = Arc::new(AtomicBool::new(false));
    let is_repaired = Arc::clone(&repaired);
    world.broker.react(move |message| {
        if message.body == "0" && !is_repaired.load(Ordering::Relaxed) {
            Reaction::Refuse(PublishErrorKind::Rejected)
        } else {
            Reaction::Take
        }
    });
    let settings = RelaySettings { key_policy: KeyPolicy::Halt, ..RelaySettings::default() };
    let _relay = world.relay_with(settings);
    for n in 0..3 {
        world.emit("orders", "a", &n.to_string()).await;
        wait(ms(50)).await;
    }
    world.emit("orders", "b", "9").await;
    wait(secs(60)).await;
    assert_eq!(world.broker.bodies(), ["9"]);
    repaired.store(true, Ordering::Relaxed);
    world.settle().await;
    assert_eq!(world.broker.bodies(), ["9", "0", "1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_message_waits_in_the_outbox_and_holds_up_nobody() {
    let world = World::new();
    let _relay = world.relay();
    let mut tx = world.database.begin().await.unwrap();
    let now = world.database.now();
    tx.push(world.message("orders", "a", "later").delayed(now, secs(90)));
    tx.push(world.message("orders", "a", "now"));
    tx.commit().await.unwrap();
    wait(secs(89)).await;
    assert_eq!(world.broker.bodies(), ["now"]);
    wait(secs(2)).await;
    assert_eq!(world.broker.bodies(), ["now", "later"]);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_delays_gets_delayed_messages_at_once() {
    let world = World::with_broker(TestBroker::with_publish_delay(secs(60)));
    let _relay = world.relay();
    let mut tx = world.database.begin().await.unwrap();
    let now = world.database.now();
    tx.push(world.message("orders", "a", "native").delayed(now, secs(50)));
    tx.push(world.message("orders", "a", "held").delayed(now, secs(90)));
    tx.commit().await.unwrap();
    wait(secs(1)).await;
    assert_eq!(world.broker.bodies(), ["native"]);
    wait(secs(31)).await;
    assert_eq!(world.broker.bodies(), ["native", "held"]);
}

#[tokio::test(start_paused = true)]
async fn messages_without_a_key_use_all_lanes() {
    let world = World::new();
    for n in 0..500 {
        world.emit("orders", "", &n.to_string()).await;
    }
    let _relay = world.relay();
    world.settle().await;
    let mut numbers: Vec<u32> =
        world.broker.bodies().iter().map(|body| body.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..500).collect::<Vec<_>>());
}
