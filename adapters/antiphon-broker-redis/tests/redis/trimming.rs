//! Removing old messages: only what every group has handled.

use std::time::Duration;

use antiphon_broker_redis::{RedisBroker, Settings};
use antiphon_config::HumanDuration;
use antiphon_messaging::{Broker, Group, Settled, Settlement, Start, Topology};
use tokio::time::timeout;

use crate::common::{PATIENCE, clean_up, collect, join, message, open, settings, text, topic};

async fn count(broker: &RedisBroker, topic: &str) -> u64 {
    let topics = broker.operate().expect("an operator").topics().await.expect("topics");
    topics.iter().find(|state| state.name == topic).and_then(|state| state.messages).expect("it")
}

async fn handle(broker: &RedisBroker, topic: &str, ordered: bool, count: usize) {
    let mut member = join(broker, topic, ordered).await;
    for delivery in collect(&mut member, count).await {
        assert_ne!(delivery.settle(Settlement::Ack).outcome().await, Settled::Stale);
    }
    timeout(PATIENCE, member.close()).await.expect("it closes");
}

async fn only_what_every_group_has_handled_is_removed(ordered: bool) {
    let settings = Settings { retention: HumanDuration::from_millis(400), ..settings() };
    let broker = open(settings).await;
    let topic = topic(&broker, ordered).await;
    let other = Group {
        name: format!("{topic}.other"),
        topics: vec![topic.clone()],
        start: Start::Earliest,
        ordered: !ordered,
    };
    let topology = Topology { topics: vec![topic.clone()], groups: vec![other] };
    broker.declare(&topology).await.expect("declared");
    let messages = (0..10).map(|n| message(&topic, &format!("k{n}"), &n.to_string())).collect();
    assert!(broker.publish(messages).await.iter().all(Result::is_ok));
    handle(&broker, &topic, ordered, 10).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(count(&broker, &topic).await, 10, "the other group needs them");

    // The other group handles all but one, which it holds.
    let subscription = antiphon_messaging::Subscription {
        group: format!("{topic}.other"),
        topics: vec![topic.clone()],
        ordered: !ordered,
    };
    let mut member = broker.subscribe(subscription).await.expect("joined");
    let mut held = None;
    for delivery in collect(&mut member, 10).await {
        if text(&delivery) == "4" {
            held = Some(delivery);
        } else {
            assert_ne!(delivery.settle(Settlement::Ack).outcome().await, Settled::Stale);
        }
    }
    let settled_down = timeout(PATIENCE, async {
        while count(&broker, &topic).await != 6 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    settled_down.await.expect("those before it are removed");
    let settled = held.take().expect("it").settle(Settlement::Ack).outcome().await;
    assert_ne!(settled, Settled::Stale);
    let gone = timeout(PATIENCE, async {
        while count(&broker, &topic).await != 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    gone.await.expect("in the end all are removed");
    let groups = broker.operate().expect("an operator").groups().await.expect("groups");
    for group in groups.iter().filter(|group| group.name.starts_with(&topic)) {
        assert_eq!(group.lag, Some(0), "{group:?}");
    }
    drop(member);
    clean_up(&broker);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_every_group_has_handled_is_removed_with_an_ordered_group_behind() {
    only_what_every_group_has_handled_is_removed(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_every_group_has_handled_is_removed_with_a_shared_group_behind() {
    only_what_every_group_has_handled_is_removed(true).await;
}
