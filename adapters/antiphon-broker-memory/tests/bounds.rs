//! What only this broker can show: its bounds, and lanes that change hands under pressure.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use antiphon_broker_memory::{MemoryBroker, Settings};
use antiphon_core::{Clock, MessageId, Timestamp};
use antiphon_messaging::{
    Broker, DeadFilter, DeadReason, Delivery, Fetched, Group, Message, PublishErrorKind, Redrive,
    Redriven, Sent, Settled, Settlement, Source, Start, Subscription, Topology,
};
use tokio::time::{Instant, timeout};

const SECOND: Duration = Duration::from_secs(1);

fn message(key: &str) -> Message {
    Message {
        id: MessageId::new(Clock::system().now()),
        topic: "t".into(),
        kind: "test.v1.Happened".into(),
        source: "tests".into(),
        key: key.into(),
        time: Timestamp::from_millis(1),
        not_before: None,
        attributes: BTreeMap::new(),
        body: bytes::Bytes::new(),
    }
}

fn messages(count: usize) -> Vec<Message> {
    (0..count).map(|n| message(&format!("key-{n}"))).collect()
}

async fn broker(settings: Settings) -> MemoryBroker {
    let broker = MemoryBroker::with_settings(settings, Clock::ticking(Timestamp::from_millis(1)));
    declare(&broker, "g").await;
    broker
}

async fn declare(broker: &MemoryBroker, group: &str) {
    let (topics, start) = (vec!["t".to_owned()], Start::Earliest);
    let group = Group { name: group.into(), topics, start, ordered: false };
    let topology = Topology { topics: vec!["t".into()], groups: vec![group] };
    broker.declare(&topology).await.expect("it is declared");
}

async fn join(broker: &MemoryBroker, ordered: bool) -> Box<dyn Source> {
    let topics = vec!["t".into()];
    broker
        .subscribe(Subscription { group: "g".into(), topics, ordered })
        .await
        .expect("it can be joined")
}

async fn deliveries(source: &mut Box<dyn Source>, credits: usize) -> Vec<Delivery> {
    match timeout(60 * SECOND, source.fetch(credits)).await {
        Ok(Fetched::Deliveries(deliveries)) => deliveries,
        other => unreachable!("{other:?}"),
    }
}

async fn settle(delivery: Delivery, settlement: Settlement) -> Settled {
    delivery.settle(settlement).outcome().await
}

#[tokio::test(start_paused = true)]
async fn publishing_waits_for_room_and_is_refused_when_none_comes() {
    let broker = broker(Settings { backlog_max: 3, ..Settings::default() }).await;
    let begun = Instant::now();
    let answers = broker.publish(messages(5)).await;
    assert_eq!(begun.elapsed(), SECOND);
    let taken: Vec<bool> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(taken, [true, true, true, false, false]);
    let error = answers.into_iter().next_back().unwrap().unwrap_err();
    assert_eq!((error.kind, error.sent), (PublishErrorKind::Overloaded, Sent::No));
    assert!(!error.is_permanent());

    let mut source = join(&broker, false).await;
    let publish = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish(messages(2)).await }
    });
    tokio::time::sleep(SECOND / 2).await;
    assert!(!publish.is_finished(), "there is no room yet");
    let held = deliveries(&mut source, 8).await;
    assert_eq!(held.len(), 3);
    assert!(publish.await.unwrap().iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn a_topic_retains_no_more_than_it_may() {
    let broker = broker(Settings { retained_max: 4, ..Settings::default() }).await;
    let _receipts = broker.publish(messages(10)).await;
    declare(&broker, "late").await;
    let subscription =
        Subscription { group: "late".into(), topics: vec!["t".into()], ordered: false };
    let mut late = broker.subscribe(subscription).await.unwrap();
    let keys: Vec<String> =
        deliveries(&mut late, 99).await.iter().map(|one| one.message.key.clone()).collect();
    assert_eq!(keys.len(), 4);
    assert!(keys.contains(&"key-6".into()) && keys.contains(&"key-9".into()), "{keys:?}");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_does_not_give_up_its_lanes_loses_them() {
    let broker = broker(Settings { revoke_wait: 5 * SECOND, ..Settings::default() }).await;
    let _receipts = broker.publish(messages(64)).await;
    let mut stuck = join(&broker, true).await;
    let mut held = deliveries(&mut stuck, 64).await;
    let mut next = join(&broker, true).await;
    let begun = Instant::now();
    let taken = deliveries(&mut next, 64).await;
    assert_eq!(begun.elapsed(), 5 * SECOND);
    assert!(!taken.is_empty() && taken.len() < 64, "about half of the lanes: {}", taken.len());
    let late = held.iter().position(|one| one.lane == taken[0].lane).unwrap();
    assert_eq!(settle(held.remove(late), Settlement::Ack).await, Settled::Stale);
    let own = held.iter().position(|one| taken.iter().all(|lost| lost.lane != one.lane)).unwrap();
    assert_eq!(settle(held.remove(own), Settlement::Ack).await, Settled::Confirmed);
}

#[tokio::test(start_paused = true)]
async fn a_group_is_read_in_order_by_all_or_by_none() {
    let broker = broker(Settings::default()).await;
    let _ordered = join(&broker, true).await;
    let topics = vec!["t".into()];
    let other = Subscription { group: "g".into(), topics, ordered: false };
    let error = broker.subscribe(other).await.err().unwrap();
    assert!(error.to_string().contains("in order by others"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_redrive_keeps_its_rate_and_takes_each_letter_once() {
    let broker = broker(Settings::default()).await;
    let _receipts = broker.publish(messages(30)).await;
    let mut source = join(&broker, false).await;
    let dead =
        |attempts| Settlement::Dead(DeadReason { code: "permanent", error: "no".into(), attempts });
    for delivery in deliveries(&mut source, 30).await {
        assert_eq!(settle(delivery, dead(1)).await, Settled::Confirmed);
    }
    let letters = broker.dead_letters().unwrap();
    let redrive = Redrive::new(DeadFilter::group("g")).per_second(NonZeroU32::new(10).unwrap());
    let counted = redrive.clone().dry_run().run(&*letters).await.unwrap();
    assert_eq!(counted, Redriven { matched: 30, redriven: 0 });

    // They die again at once, which must not send the redrive round in circles.
    let dying = tokio::spawn(async move {
        loop {
            for delivery in deliveries(&mut source, 30).await {
                let _ = settle(delivery, dead(2)).await;
            }
        }
    });
    let begun = Instant::now();
    let done = redrive.run(&*letters).await.unwrap();
    assert_eq!(done, Redriven { matched: 30, redriven: 30 });
    assert!((2_800..=3_100).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    dying.abort();
    let few = Redrive::new(DeadFilter::group("g")).count_max(7).dry_run();
    assert_eq!(few.run(&*letters).await.unwrap().matched, 7);
}
