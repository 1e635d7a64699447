//! What a group remembers, and what its members do when handlers are slow or the network is away.

use std::collections::BTreeSet;

use antiphon_broker_kafka::Settings;
use antiphon_config::HumanDuration;
use antiphon_messaging::{Broker, Delivery, Fetched, Settled, Settlement, Source};
use antiphon_testing::proxy::{Faults, Proxy, Way};
use antiphon_testing::services::{Private, Service};
use tokio::time::{Duration, Instant, timeout};

use crate::common::{Tidy, message, open, send, settings, subscription, text, topology, unique};

const PATIENCE: Duration = Duration::from_secs(20);

async fn fetch(source: &mut Box<dyn Source>, credits: usize) -> Vec<Delivery> {
    let fetched = async {
        loop {
            match source.fetch(credits).await {
                Fetched::Deliveries(deliveries) => return deliveries,
                Fetched::Revoked { .. } => {}
                Fetched::Lost(why) => unreachable!("lost: {why}"),
            }
        }
    };
    timeout(PATIENCE, fetched).await.expect("deliveries come in time")
}

async fn collect(source: &mut Box<dyn Source>, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(fetch(source, count - all.len()).await);
    }
    all
}

async fn ack(delivery: Delivery) {
    assert_ne!(delivery.settle(Settlement::Ack).outcome().await, Settled::Stale);
}

async fn lag(broker: &impl Broker, name: &str) -> Option<u64> {
    let groups = broker.operate().expect("an operator's view").groups().await.expect("listed");
    groups.into_iter().find(|group| group.name == name).and_then(|group| group.lag)
}

/// Pitfall 41: nothing comes after the last record, and it is written down all the same.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_record_is_written_down_by_the_timer() {
    let broker = Tidy::new(open(settings()).await);
    let name = unique("last");
    broker.declare(&topology(&name, true)).await.expect("declared");
    send(&broker, vec![message(&name, "k", "only")]).await;
    assert_eq!(lag(&broker, &name).await, Some(1));
    let mut source = broker.subscribe(subscription(&name, true)).await.expect("joined");
    ack(collect(&mut source, 1).await.remove(0)).await;
    let written = async {
        while lag(&broker, &name).await != Some(0) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(5), written).await.expect("in time, without another record");
}

/// A member that vanishes without a word: what it had written down is known to the next one, also
/// what was done out of order, and how often a message was tried and until when it waits.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_settled_out_of_order_survives_a_crash_of_the_member() {
    let proxy = Proxy::in_front_of(&Service::Kafka.url()).await.expect("a proxy");
    drop(proxy);
    let (_server, proxy) = Private::behind_proxy(Service::Kafka).await.expect("a broker");
    let settings = Settings { url: proxy.url().to_owned(), partitions: 1, ..settings() };
    let broker = open(settings.clone()).await;
    let name = unique("crash");
    broker.declare(&topology(&name, true)).await.expect("declared");
    let batch = (0..20).map(|n| message(&name, &n.to_string(), &n.to_string())).collect();
    send(&broker, batch).await;
    let mut source = broker.subscribe(subscription(&name, true)).await.expect("joined");
    let mut held = collect(&mut source, 20).await;
    let first = held.remove(0);
    let begun = Instant::now();
    let after = Duration::from_secs(12);
    let retried = first.settle(Settlement::Retry { after, attempts: 3 }).outcome().await;
    assert_eq!(retried, Settled::Confirmed, "the wait is as durable as the message");
    for (n, delivery) in held.into_iter().enumerate() {
        if n % 2 == 0 {
            ack(delivery).await;
        } else {
            std::mem::forget(delivery);
        }
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    // Its connections die, and it cannot say good-bye.
    proxy.set(Faults { refuse: true, ..Faults::default() });
    proxy.reset();
    drop(source);
    tokio::time::sleep(Duration::from_millis(500)).await;
    proxy.heal();
    let other = open(settings).await;
    let mut source = other.subscribe(subscription(&name, true)).await.expect("joined");
    let again = collect(&mut source, 9).await;
    let texts: Vec<usize> = again.iter().map(|one| text(one).parse().expect("a number")).collect();
    assert_eq!(texts, [2, 4, 6, 8, 10, 12, 14, 16, 18], "only what was not acknowledged");
    for delivery in again {
        assert_eq!(delivery.attempt, 1);
        ack(delivery).await;
    }
    let delivery = collect(&mut source, 1).await.remove(0);
    assert_eq!((text(&delivery).as_str(), delivery.attempt), ("0", 4));
    assert!(begun.elapsed() >= after.mul_f64(0.95), "the wait is kept: {:?}", begun.elapsed());
    ack(delivery).await;
}

/// Pitfall 40: a handler that takes longer than `poll_interval_max` does not put the member out.
#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_handler_keeps_its_place_in_the_group() {
    let patient = Settings {
        poll_interval_max: HumanDuration::from_millis(6_000),
        handover_timeout: HumanDuration::from_millis(2_000),
        partitions: 1,
        ..settings()
    };
    let broker = Tidy::new(open(patient).await);
    let name = unique("stuck");
    broker.declare(&topology(&name, true)).await.expect("declared");
    send(&broker, vec![message(&name, "k", "slow"), message(&name, "k", "next")]).await;
    let mut source = broker.subscribe(subscription(&name, true)).await.expect("joined");
    let slow = collect(&mut source, 1).await.remove(0);
    // Nobody fetches, and nothing is settled.
    tokio::time::sleep(Duration::from_secs(8)).await;
    ack(slow).await;
    let next = collect(&mut source, 1).await.remove(0);
    assert_eq!(text(&next), "next");
    ack(next).await;
}

/// `Source` 4: a member that the cluster has given up notices, and can settle nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_cut_off_loses_what_it_holds() {
    let (_server, proxy) = Private::behind_proxy(Service::Kafka).await.expect("a broker");
    let broker = open(Settings { url: proxy.url().to_owned(), ..settings() }).await;
    let name = unique("cut");
    broker.declare(&topology(&name, true)).await.expect("declared");
    send(&broker, vec![message(&name, "k", "held")]).await;
    let mut source = broker.subscribe(subscription(&name, true)).await.expect("joined");
    let held = collect(&mut source, 1).await.remove(0);
    proxy.set(Faults::both(Way { hold: true, ..Way::default() }));
    let lost = async {
        loop {
            if let Fetched::Lost(why) = source.fetch(1).await {
                return why;
            }
        }
    };
    let why = timeout(PATIENCE, lost).await.expect("the member notices");
    assert!(proxy.counts().held > 0, "the fault bit");
    let late = held.settle(Settlement::Ack).outcome();
    assert_eq!(timeout(PATIENCE, late).await.expect("an answer"), Settled::Stale, "{why}");
    proxy.heal();
    let rejoined = async {
        loop {
            match broker.subscribe(subscription(&name, true)).await {
                Ok(source) => return source,
                Err(error) => assert!(error.transient, "{error}"),
            }
        }
    };
    let mut source = timeout(PATIENCE, rejoined).await.expect("it joins again");
    let again = collect(&mut source, 1).await.remove(0);
    assert_eq!((text(&again).as_str(), again.attempt), ("held", 1));
    ack(again).await;
}

/// Pitfall 39: what waits behind a key is kept within bounds, and then the partition is paused; when
/// the key goes on, so does the partition.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_paused_when_too_much_waits_and_goes_on_after() {
    let narrow =
        Settings { kept_messages_max: 50, read_ahead_max: 20, partitions: 1, ..settings() };
    let broker = Tidy::new(open(narrow).await);
    let name = unique("narrow");
    broker.declare(&topology(&name, true)).await.expect("declared");
    send(&broker, (0..500).map(|n| message(&name, "k", &n.to_string())).collect()).await;
    let mut source = broker.subscribe(subscription(&name, true)).await.expect("joined");
    let first = collect(&mut source, 1).await.remove(0);
    let after = Duration::from_millis(1_500);
    let retried = first.settle(Settlement::Retry { after, attempts: 1 }).outcome().await;
    assert_eq!(retried, Settled::Confirmed);
    assert!(timeout(Duration::from_millis(700), source.fetch(10)).await.is_err(), "the key waits");
    let mut texts = Vec::new();
    while texts.len() < 500 {
        for delivery in fetch(&mut source, 64).await {
            texts.push(text(&delivery).parse::<usize>().expect("a number"));
            ack(delivery).await;
        }
    }
    assert!(texts.iter().copied().eq(0..500), "all of them, in order");
}

/// Messages that nobody fetches stay with the broker, beyond a bound.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_fetching_is_no_reason_to_read_everything() {
    let broker = Tidy::new(open(Settings { read_ahead_max: 100, ..settings() }).await);
    let name = unique("idle");
    broker.declare(&topology(&name, false)).await.expect("declared");
    let mut source = broker.subscribe(subscription(&name, false)).await.expect("joined");
    for batch in 0..20 {
        let numbers = batch * 500..(batch + 1) * 500;
        let messages = numbers.map(|n| message(&name, &n.to_string(), &n.to_string())).collect();
        send(&broker, messages).await;
    }
    // Long enough for the partitions to be paused.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut texts = BTreeSet::new();
    while texts.len() < 10_000 {
        for delivery in fetch(&mut source, 256).await {
            assert!(texts.insert(text(&delivery)), "a message came twice without a failure");
            ack(delivery).await;
        }
    }
}

/// A group that nobody reads any more begins where it was; a topic that was made anew begins anew.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_come_later_are_read_from_their_first_record() {
    let broker = Tidy::new(open(Settings { partitions: 1, ..settings() }).await);
    let name = unique("wider");
    broker.declare(&topology(&name, true)).await.expect("declared");
    send(&broker, vec![message(&name, "k", "old")]).await;
    let admin: rdkafka::admin::AdminClient<rdkafka::client::DefaultClientContext> =
        rdkafka::ClientConfig::new()
            .set("bootstrap.servers", Service::Kafka.url().trim_start_matches("kafka://"))
            .create()
            .expect("an admin client");
    let wider = rdkafka::admin::NewPartitions::new(&name, 5);
    let made = admin.create_partitions([&wider], &rdkafka::admin::AdminOptions::new()).await;
    assert!(made.expect("answered").iter().all(Result::is_ok));
    // A producer that has not met the topic sees all of its partitions.
    let other = open(settings()).await;
    let all = async { while other.publish(vec![message(&name, "", "probe")]).await[0].is_err() {} };
    timeout(PATIENCE, all).await.expect("published");
    let batch = (0..40).map(|n| message(&name, &n.to_string(), &n.to_string())).collect();
    send(&other, batch).await;
    let mut source = broker.subscribe(subscription(&name, true)).await.expect("joined");
    let mut lanes = BTreeSet::new();
    for delivery in collect(&mut source, 42).await {
        lanes.insert(delivery.lane);
        ack(delivery).await;
    }
    assert!(lanes.len() > 1, "{lanes:?}");
}
