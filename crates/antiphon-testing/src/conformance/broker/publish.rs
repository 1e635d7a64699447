//! Publishing: rules of [`Broker`](antiphon_messaging::Broker).

use std::collections::BTreeSet;
use std::time::Duration;

use antiphon_core::{Clock, Context};
use antiphon_messaging::{PublishErrorKind, Sent};
use bytes::Bytes;
use tokio::time::Instant;

use super::{BrokerHarness, Member, Site, ack, assert_took, text};

/// `Broker` 1 and 5: what is confirmed arrives, and every part of it as it was.
pub async fn every_message_is_confirmed_and_arrives_unchanged(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    let mut sent = Vec::new();
    for n in 0..100_u8 {
        let mut message = site.message(&format!("schlüssel-{n}"), "");
        message.body = Bytes::from(vec![n; usize::from(n)]);
        message.inject(&Context::root().with_correlation_id("Bestellung \"7\", 50 % ✓"));
        message.attributes.insert("note".into(), format!("naïve ☃ {n}\nsecond line"));
        message.attributes.insert("empty".into(), String::new());
        sent.push(message);
    }
    site.send(sent.clone()).await;
    let mut member = site.join("all", false).await;
    let mut received = Vec::new();
    for delivery in member.collect(100).await {
        assert_eq!(delivery.attempt, 1);
        received.push((*delivery.message).clone());
        ack(delivery).await;
    }
    sent.sort_by_key(|message| message.id);
    received.sort_by_key(|message| message.id);
    assert_eq!(received, sent);
    member.stays_quiet().await;
}

/// `Broker` 1: the answers are in the order of the input, also when some are refusals.
pub async fn answers_come_in_the_order_of_the_messages(harness: &impl BrokerHarness) {
    let site = Site::with_ordered_groups(harness, &["all"]).await;
    let mut lost = site.message("a", "nowhere");
    lost.topic = format!("{}.unknown", site.topic);
    let batch = vec![site.message("a", "first"), lost, site.message("a", "second")];
    let answers = site.broker.publish(batch).await;
    let taken: Vec<bool> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(taken, [true, false, true]);
    let mut member = site.join("all", site.ordered).await;
    assert_eq!(member.handle(2).await, ["first", "second"]);
}

/// `Broker` 7: the limit is exact, the refusal is certain, and what follows is taken.
pub async fn an_oversized_message_is_refused_and_the_connection_lives(
    harness: &impl BrokerHarness,
) {
    let site = Site::with_groups(harness, &["all"]).await;
    let limit = site.broker.capabilities().message_bytes_max;
    let mut largest = site.message("a", "");
    largest.body = vec![7; limit - largest.size()].into();
    let mut too_large = site.message("a", "");
    too_large.body = vec![7; limit - too_large.size() + 1].into();
    let answers = site.broker.publish(vec![too_large]).await;
    let error = answers.into_iter().next().expect("an answer").expect_err("too large");
    assert_eq!((error.kind, error.sent), (PublishErrorKind::TooLarge, Sent::No));
    assert!(error.is_permanent());
    site.send(vec![largest.clone()]).await;
    let mut member = site.join("all", false).await;
    let delivery = member.collect(1).await.remove(0);
    assert_eq!(*delivery.message, largest);
    ack(delivery).await;
}

/// `Broker` 2: a topic that does not exist is a certain refusal, never a silent loss.
pub async fn a_message_for_an_unknown_topic_is_unroutable(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    let mut message = site.message("a", "lost?");
    message.topic = format!("{}.unknown", site.topic);
    let answers = site.broker.publish(vec![message]).await;
    let error = answers.into_iter().next().expect("an answer").expect_err("unroutable");
    assert_eq!((error.kind, error.sent), (PublishErrorKind::Unroutable, Sent::No));
}

/// `Broker` 4: a group gets the messages of its topics only.
pub async fn topics_do_not_mix(harness: &impl BrokerHarness) {
    let one = Site::with_groups(harness, &["all"]).await;
    let two = Site::with_groups(harness, &["all"]).await;
    one.publish(&[("k", "one")]).await;
    two.publish(&[("k", "two")]).await;
    let (mut first, mut second) = (one.join("all", false).await, two.join("all", false).await);
    assert_eq!(first.handle(1).await, ["one"]);
    assert_eq!(second.handle(1).await, ["two"]);
    first.stays_quiet().await;
    second.stays_quiet().await;
}

/// `Broker` 8: `not_before` is kept, and later messages of the key do not wait for it.
pub async fn a_delayed_message_is_not_early_and_holds_nothing_back(harness: &impl BrokerHarness) {
    const DELAY: Duration = Duration::from_millis(700);
    let site = Site::with_ordered_groups(harness, &["all"]).await;
    if site.broker.capabilities().publish_delay_max < DELAY {
        // Without the capability the engine never sends such messages here.
        return;
    }
    let mut member = site.join("all", site.ordered).await;
    let begun = Instant::now();
    let delayed = site.message("k", "later").delayed(Clock::system().now(), DELAY);
    site.send(vec![delayed, site.message("k", "now")]).await;
    assert_eq!(member.handle(1).await, ["now"]);
    assert!(begun.elapsed() < DELAY, "a message without a delay waited for one with");
    assert_eq!(member.handle(1).await, ["later"]);
    assert_took(begun, DELAY);
    member.stays_quiet().await;
}

/// `Broker` 4: 20 publishers and 10 members at once; each message is handled by exactly one.
pub async fn many_publishers_and_subscribers_lose_nothing(harness: &impl BrokerHarness) {
    const PUBLISHERS: usize = 20;
    const EACH: usize = 50;
    let site = Site::with_groups(harness, &["all"]).await;
    let publish = futures_util::future::join_all((0..PUBLISHERS).map(async |publisher| {
        for n in 0..EACH {
            let text = format!("{publisher}/{n}");
            site.publish(&[(&text, &text)]).await;
        }
    }));
    let (results, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let mut members = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (member, results) = (site.join("all", false).await, results.clone());
        members.spawn(consume_for_ever(member, results));
    }
    let collect = async {
        let mut texts = BTreeSet::new();
        while texts.len() < PUBLISHERS * EACH {
            let within = tokio::time::timeout(super::PATIENCE, seen.recv());
            let text = within.await.expect("all messages come").expect("members go on");
            assert!(texts.insert(text), "a message came twice without a failure");
        }
    };
    tokio::join!(publish, collect);
    members.shutdown().await;
}

async fn consume_for_ever(mut member: Member, results: tokio::sync::mpsc::UnboundedSender<String>) {
    loop {
        let antiphon_messaging::Fetched::Deliveries(deliveries) = member.0.fetch(16).await else {
            continue;
        };
        for delivery in deliveries {
            let text = text(&delivery);
            ack(delivery).await;
            if results.send(text).is_err() {
                return;
            }
        }
    }
}
