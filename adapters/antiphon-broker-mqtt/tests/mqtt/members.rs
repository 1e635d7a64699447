//! Members that die, freeze, or do not let go.

use std::collections::BTreeSet;
use std::time::Duration;

use antiphon_broker_mqtt::Acknowledge;
use antiphon_config::HumanDuration;
use antiphon_messaging::{Broker, Delivery, Fetched, Settled, Settlement, Source};
use antiphon_testing::proxy::{Faults, Proxy, Way};
use tokio::time::timeout;

use crate::scratch::Scratch;
use crate::support::{
    PATIENCE, ack, acked, at, declare, fetch, handle, join, message, open, publish, text,
};

const COUNT: usize = 100;

async fn collect(source: &mut Box<dyn Source>, count: usize) -> Vec<Delivery> {
    let mut held = Vec::new();
    while held.len() < count {
        held.extend(fetch(source, count - held.len()).await);
    }
    held
}

/// A member behind a network that fails as `faults` says holds 50 of 100 messages; another one gets
/// all 100.
async fn another_takes_over(faults: Faults) {
    let mut scratch = Scratch::new();
    scratch.settings.keep_alive = HumanDuration::from_secs(1);
    let broker = scratch.open().await;
    declare(&broker, "t", "g").await;
    let proxy = Proxy::in_front_of(&scratch.settings.url).await.expect("a proxy");
    let distant = open(at(&scratch.settings, proxy.url())).await;
    let mut lost = join(&distant, "t", "g").await;
    let batch = (0..COUNT).map(|n| message("t", &n.to_string(), &n.to_string())).collect();
    for answer in broker.publish(batch).await {
        let _receipt = answer.expect("it is taken");
    }
    let mut held = collect(&mut lost, COUNT / 2).await;
    proxy.set(faults);
    if faults.refuse {
        proxy.reset();
    }
    let mut source = join(&broker, "t", "g").await;
    let mut seen = BTreeSet::new();
    while seen.len() < COUNT {
        for delivery in fetch(&mut source, 64).await {
            assert!(seen.insert(text(&delivery)), "twice, without a second fault");
            acked(delivery).await;
        }
    }
    assert!(proxy.counts().bites() > 0, "the fault bit");
    let told = async {
        loop {
            match lost.fetch(1).await {
                Fetched::Lost(_) => return,
                Fetched::Revoked { .. } | Fetched::Deliveries(_) => {}
            }
        }
    };
    timeout(PATIENCE, told).await.expect("the member is told");
    assert_eq!(ack(held.remove(0)).await, Settled::Stale);
    proxy.heal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lanes_of_a_dead_member_go_to_another_and_nothing_is_lost() {
    another_takes_over(Faults { refuse: true, ..Faults::default() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lanes_of_a_frozen_member_go_to_another_and_nothing_is_lost() {
    another_takes_over(Faults::both(Way { hold: true, ..Way::default() })).await;
}

#[tokio::test]
async fn tries_are_counted_across_members() {
    let scratch = Scratch::new();
    let broker = scratch.open().await;
    declare(&broker, "t", "g").await;
    let _receipt = publish(&broker, message("t", "k", "tried")).await.expect("it is taken");
    let mut first = join(&broker, "t", "g").await;
    let delivery = fetch(&mut first, 1).await.remove(0);
    let after = Duration::from_millis(1);
    let retry = Settlement::Retry { after, attempts: 3 };
    assert_eq!(delivery.settle(retry).outcome().await, Settled::Confirmed);
    drop(first);
    let mut second = join(&broker, "t", "g").await;
    let delivery = fetch(&mut second, 1).await.remove(0);
    assert_eq!((text(&delivery).as_str(), delivery.attempt), ("tried", 4));
    acked(delivery).await;
}

#[tokio::test]
async fn a_retry_that_waits_holds_its_key_for_the_next_member_as_well() {
    let scratch = Scratch::new();
    let broker = scratch.open().await;
    declare(&broker, "t", "g").await;
    for text in ["1", "2"] {
        let _receipt = publish(&broker, message("t", "k", text)).await.expect("it is taken");
    }
    let mut first = join(&broker, "t", "g").await;
    let delivery = fetch(&mut first, 1).await.remove(0);
    let retry = Settlement::Retry { after: Duration::from_secs(2), attempts: 1 };
    let begun = tokio::time::Instant::now();
    assert_eq!(delivery.settle(retry).outcome().await, Settled::Confirmed);
    drop(first);
    let mut second = join(&broker, "t", "g").await;
    assert_eq!(handle(&mut second, 2).await, ["1", "2"]);
    assert!(begun.elapsed() >= Duration::from_millis(1_900), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_member_that_does_not_let_go_is_not_waited_for_for_ever() {
    let mut scratch = Scratch::new();
    scratch.settings.handover_timeout = HumanDuration(Duration::from_millis(500));
    let broker = scratch.open().await;
    declare(&broker, "t", "g").await;
    let mut stuck = join(&broker, "t", "g").await;
    for n in 0..COUNT {
        let _receipt = publish(&broker, message("t", &n.to_string(), "x")).await.expect("taken");
    }
    let held = collect(&mut stuck, COUNT).await;
    let mut other = join(&broker, "t", "g").await;
    let (revoked, got) = tokio::join!(stuck.fetch(0), fetch(&mut other, 64));
    let Fetched::Revoked { lanes, .. } = revoked else { panic!("{revoked:?}") };
    assert_eq!(lanes.len(), 8, "{lanes:?}");
    assert!(got.iter().all(|delivery| lanes.contains(&delivery.lane)));
    let (given, kept): (Vec<_>, Vec<_>) =
        held.into_iter().partition(|delivery| lanes.contains(&delivery.lane));
    for delivery in given {
        assert_eq!(ack(delivery).await, Settled::Stale, "it belongs to the other by now");
    }
    for delivery in kept {
        assert_eq!(ack(delivery).await, Settled::Sent);
    }
}

#[tokio::test]
async fn acknowledging_in_the_order_of_receipt_loses_nothing_either() {
    let mut scratch = Scratch::new();
    scratch.settings.acknowledge = Acknowledge::Received;
    let broker = scratch.open().await;
    declare(&broker, "t", "g").await;
    for n in 0..10 {
        let _receipt = publish(&broker, message("t", "k", &n.to_string())).await.expect("taken");
    }
    let mut first = join(&broker, "t", "g").await;
    let mut held = collect(&mut first, 10).await;
    // All but the fifth, backwards: what is behind it cannot be acknowledged yet.
    let fifth = held.remove(4);
    for delivery in held.into_iter().rev() {
        assert_eq!(ack(delivery).await, Settled::Sent);
    }
    drop(first);
    drop(fifth);
    let mut second = join(&broker, "t", "g").await;
    assert_eq!(handle(&mut second, 6).await, ["4", "5", "6", "7", "8", "9"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_at_once_declare_the_same_group_and_all_work() {
    let scratch = Scratch::new();
    let mut replicas = tokio::task::JoinSet::new();
    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..5 {
        let (broker, sender) = (scratch.open().await, sender.clone());
        replicas.spawn(async move {
            loop {
                // As the engine does: declare, join, and again when it is lost.
                declare(&broker, "t", "g").await;
                let mut source = join(&broker, "t", "g").await;
                loop {
                    match source.fetch(16).await {
                        Fetched::Deliveries(deliveries) => {
                            for delivery in deliveries {
                                let text = text(&delivery);
                                if ack(delivery).await == Settled::Sent {
                                    let _ = sender.send(text);
                                }
                            }
                        }
                        Fetched::Revoked { .. } => {}
                        Fetched::Lost(_) => break,
                    }
                }
            }
        });
    }
    let broker = scratch.open().await;
    declare(&broker, "t", "g").await;
    for n in 0..COUNT {
        let sent = publish(&broker, message("t", &n.to_string(), &n.to_string())).await;
        let _receipt = sent.expect("it is taken");
    }
    let mut all = BTreeSet::new();
    while all.len() < COUNT {
        let next = timeout(PATIENCE, seen.recv()).await.expect("all come");
        all.insert(next.expect("replicas go on"));
    }
    replicas.shutdown().await;
}
