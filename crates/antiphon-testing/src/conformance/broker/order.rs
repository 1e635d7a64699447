//! The order of keys.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_messaging::{Fetched, Settlement};
use tokio::time::{Instant, timeout};

use super::{BrokerHarness, Member, PATIENCE, Site, ack, assert_took, settle, text};

/// `Broker` 3: 1 000 messages of 16 keys, in batches, come in the order of each key.
pub async fn messages_of_a_key_come_in_order(harness: &impl BrokerHarness) {
    let site = Site::with_ordered_groups(harness, &["all"]).await;
    if !refuses_or_keeps_order(&site).await {
        return;
    }
    for batch in 0..10 {
        let numbers = batch * 100..(batch + 1) * 100;
        let messages =
            numbers.map(|n| site.message(&format!("key-{}", n % 16), &n.to_string())).collect();
        site.send(messages).await;
    }
    let mut member = site.join("all", true).await;
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    for _ in 0..20 {
        for delivery in member.collect(50).await {
            let n: i64 = text(&delivery).parse().expect("a number");
            let before = last.insert(delivery.message.key.clone(), n).unwrap_or(-1);
            assert!(before < n, "{n} came after {before}");
            ack(delivery).await;
        }
    }
    member.stays_quiet().await;
}

/// A broker without order says so and refuses; whether there is order to test.
async fn refuses_or_keeps_order(site: &Site) -> bool {
    let ordered = site.broker.capabilities().ordered;
    if !ordered {
        let answer = site.broker.subscribe(site.subscription("all", true)).await;
        assert!(answer.is_err(), "a broker without order must refuse ordered members");
    }
    ordered
}

/// `Capabilities::ordered` and `Source` 3: what one member holds of a key, nobody else gets of that
/// key, also when others join; once it is given up they do.
pub async fn a_key_is_in_one_members_hands_at_a_time(harness: &impl BrokerHarness) {
    let site = Site::with_ordered_groups(harness, &["all"]).await;
    if !refuses_or_keeps_order(&site).await {
        return;
    }
    let twice = |n: usize| site.message(&format!("key-{}", n % 40), &n.to_string());
    site.send((0..40).map(twice).collect()).await;
    let mut first = site.join("all", true).await;
    let held = first.collect(40).await;
    let mut second = site.join("all", true).await;
    site.send((40..80).map(twice).collect()).await;
    // Everything that is there is of a key that the first member holds.
    assert!(
        timeout(super::QUIET, next_deliveries(&mut second)).await.is_err(),
        "a key came to a second member while the first still held it"
    );
    for delivery in held {
        ack(delivery).await;
    }
    let share = async |member: &mut Member| {
        let mut keys = Vec::new();
        while let Ok(deliveries) = timeout(super::QUIET * 6, next_deliveries(member)).await {
            for delivery in deliveries {
                keys.push(delivery.message.key.clone());
                ack(delivery).await;
            }
        }
        keys
    };
    let (one, two) = tokio::join!(share(&mut first), share(&mut second));
    assert_eq!(one.len() + two.len(), 40, "every message is handled: {one:?} {two:?}");
    assert!(!two.is_empty(), "the second member gets its share");
    assert!(one.iter().all(|key| !two.contains(key)), "members do not share keys");
}

async fn next_deliveries(member: &mut Member) -> Vec<antiphon_messaging::Delivery> {
    loop {
        match member.0.fetch(64).await {
            Fetched::Deliveries(deliveries) => return deliveries,
            Fetched::Revoked { done, .. } => drop(done),
            Fetched::Lost(reason) => unreachable!("the source was lost: {reason}"),
        }
    }
}

/// `Broker` 9: while a message waits for its retry its key waits, and no other does.
pub async fn a_waiting_message_holds_back_its_key_and_no_other(harness: &impl BrokerHarness) {
    const DELAY: Duration = Duration::from_millis(600);
    let site = Site::with_ordered_groups(harness, &["all"]).await;
    let capabilities = site.broker.capabilities();
    if !capabilities.holds_keys || capabilities.retry_delay_max < DELAY {
        return;
    }
    let mut member = site.join("all", true).await;
    site.publish(&[("bad", "bad-1"), ("bad", "bad-2"), ("bad", "bad-3")]).await;
    let mut held = member.collect(3).await;
    let begun = Instant::now();
    let (first, followers) = (held.remove(0), held);
    settle(first, Settlement::Retry { after: DELAY, attempts: 1 }).await;
    for follower in followers {
        settle(follower, Settlement::Release).await;
    }
    site.publish(&[("bad", "bad-4"), ("good", "good-1")]).await;
    assert_eq!(member.handle(1).await, ["good-1"]);
    assert!(begun.elapsed() < DELAY, "another key waited");
    let mut texts = Vec::new();
    while texts.len() < 4 {
        for delivery in member.fetch(4).await {
            if texts.is_empty() {
                assert_took(begun, DELAY);
            }
            let first = texts.is_empty();
            assert_eq!(delivery.attempt, if first { 2 } else { 1 }, "{}", text(&delivery));
            texts.push(text(&delivery));
            ack(delivery).await;
        }
    }
    assert_eq!(texts, ["bad-1", "bad-2", "bad-3", "bad-4"]);
}

/// `Broker` 9: what is given back, settled in any order or dropped, comes again in order.
pub async fn released_messages_come_back_in_order(harness: &impl BrokerHarness) {
    let site = Site::with_ordered_groups(harness, &["all"]).await;
    if !site.broker.capabilities().holds_keys {
        return;
    }
    let mut member = site.join("all", true).await;
    let texts: Vec<String> = (0..20).map(|n| format!("{n:02}")).collect();
    let messages = texts.iter().map(|text| site.message("k", text)).collect();
    site.send(messages).await;
    let held = member.collect(10).await;
    for (n, delivery) in held.into_iter().rev().enumerate() {
        if n % 2 == 0 {
            settle(delivery, Settlement::Release).await;
        } else {
            drop(delivery);
        }
    }
    // A dropped delivery is released without an answer; give the broker a moment.
    tokio::time::sleep(super::QUIET).await;
    let again = timeout(PATIENCE, member.handle(20)).await.expect("all come again");
    assert_eq!(again, texts);
}
