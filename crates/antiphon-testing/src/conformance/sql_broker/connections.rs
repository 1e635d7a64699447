//! Connections that end, hang, or lose what they carry.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_messaging::{PublishErrorKind, Sent, Settled, Settlement};
use tokio::time::{Instant, timeout};

use super::{
    Consumer, PATIENCE, SqlBrokerHarness, declare, message, number, publish, publish_until_taken,
};
use crate::proxy::{Faults, Way};

/// Every connection is killed again and again while messages are published and handled: what was
/// confirmed arrives, and arrives twice only for a reason.
pub async fn killed_connections_lose_nothing(harness: &impl SqlBrokerHarness) {
    const MESSAGES: usize = 400;
    let (publishing, consuming) = (harness.open().await, harness.open().await);
    declare(&publishing).await;
    let mut consumer = Consumer::join(&consuming).await;
    let publisher = tokio::spawn(async move {
        let mut in_doubt = 0;
        for n in 0..MESSAGES {
            in_doubt += publish_until_taken(&publishing, message(n)).await;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        in_doubt
    });
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    let mut kill_at = Instant::now() + Duration::from_millis(300);
    let mut kills = 0;
    let begun = Instant::now();
    while counts.len() < MESSAGES {
        assert!(begun.elapsed() < 2 * PATIENCE, "{} of {MESSAGES} came", counts.len());
        if kills < 5 && Instant::now() >= kill_at {
            harness.kill_connections().await;
            kills += 1;
            kill_at = Instant::now() + Duration::from_millis(300);
        }
        let Ok(deliveries) = timeout(Duration::from_millis(50), consumer.fetch(16)).await else {
            continue;
        };
        for delivery in deliveries {
            *counts.entry(number(&delivery)).or_default() += 1;
            drop(delivery.settle(Settlement::Ack));
        }
    }
    let in_doubt = publisher.await.expect("the publisher has finished");
    assert!(kills > 0 && consumer.losses + in_doubt > 0, "the faults bit");
    let more: usize = counts.values().map(|count| count - 1).sum();
    assert!(
        more == 0 || consumer.losses + in_doubt > 0,
        "{more} came again, after {} losses and {in_doubt} doubts",
        consumer.losses
    );
}

/// The answer to a commit is lost: the outcome is [`Sent::Maybe`], and the message, which is there,
/// comes once more when it is sent again.
pub async fn a_confirmation_that_is_lost_is_in_doubt_and_the_message_comes_once_more(
    harness: &impl SqlBrokerHarness,
) {
    let consuming = harness.open().await;
    declare(&consuming).await;
    let mut consumer = Consumer::join(&consuming).await;
    let (broker, proxy) = harness.open_through().await;
    publish(&broker, 0..1).await;
    assert_eq!(consumer.handle(1).await, [0]);
    // Everything reaches the server, and every connection is cut before its answer arrives. An idle
    // connection would be tried first, so nothing is idle.
    let sent = message(1);
    publish(&broker, 2..3).await;
    proxy.set(Faults {
        to_client: Way { cut_after: Some(0), ..Way::default() },
        ..Faults::default()
    });
    let answer = broker.publish(vec![sent.clone()]).await.remove(0);
    let error = answer.expect_err("the answer was lost");
    assert_eq!((error.kind, error.sent), (PublishErrorKind::Disconnected, Sent::Maybe));
    assert!(proxy.counts().cut > 0, "the fault bit: {}", proxy.counts());
    assert_eq!(consumer.handle(2).await, [1, 2], "the message is there");
    proxy.heal();
    publish_until_taken(&broker, sent.clone()).await;
    let again = consumer.fetch(1).await.remove(0);
    assert_eq!(again.message.id, sent.id, "the same message, once more");
    assert_ne!(again.settle(Settlement::Ack).outcome().await, Settled::Stale);
    assert!(consumer.is_quiet().await);
}

/// The way to the server is cut in the middle of a message: it is not there, whatever the answer, and
/// comes once when it is sent again.
pub async fn a_message_that_did_not_get_through_comes_when_it_is_sent_again(
    harness: &impl SqlBrokerHarness,
) {
    let consuming = harness.open().await;
    declare(&consuming).await;
    let mut consumer = Consumer::join(&consuming).await;
    let (broker, proxy) = harness.open_through().await;
    let mut sent = message(1);
    sent.attributes.insert("note".into(), "x".repeat(100_000));
    for cut_after in [0, 10, 500, 50_000] {
        publish(&broker, 0..1).await;
        assert_eq!(consumer.handle(1).await, [0]);
        proxy.set(Faults {
            to_server: Way { cut_after: Some(cut_after), ..Way::default() },
            ..Faults::default()
        });
        let answer = broker.publish(vec![sent.clone()]).await.remove(0);
        assert_eq!(answer.expect_err("it was cut").kind, PublishErrorKind::Disconnected);
        proxy.heal();
    }
    assert!(consumer.is_quiet().await, "half a message is none");
    publish_until_taken(&broker, sent).await;
    assert_eq!(consumer.handle(1).await, [1]);
    assert!(consumer.is_quiet().await);
}

/// A member that cannot reach the database for longer than its leases last, and then can again: its
/// successor has the lanes, and nothing that it settles counts.
pub async fn a_member_that_was_cut_off_is_fenced(harness: &impl SqlBrokerHarness) {
    let healthy = harness.open().await;
    declare(&healthy).await;
    let (slow, proxy) = harness.open_through().await;
    let mut paused = Consumer::join(&slow).await;
    publish(&healthy, 0..20).await;
    let mut held = Vec::new();
    while held.len() < 20 {
        held.extend(paused.fetch(20 - held.len()).await);
    }
    proxy.set(Faults::both(Way { hold: true, ..Way::default() }));
    let retry = Settlement::Retry { after: Duration::from_secs(60), attempts: 1 };
    // On its way when the network holds: it may arrive after the leases are over.
    let late = held.remove(0).settle(retry.clone());
    let mut successor = Consumer::join(&healthy).await;
    let begun = Instant::now();
    assert_eq!(successor.handle(20).await, (0..20).collect::<Vec<_>>());
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(2), "the leases were not respected: {took:?}");
    assert!(proxy.counts().held > 0, "the fault bit: {}", proxy.counts());
    proxy.heal();
    let late = timeout(PATIENCE, late.outcome()).await.expect("an answer");
    assert_eq!(late, Settled::Stale, "the lanes are another's");
    for delivery in held {
        let settled = timeout(PATIENCE, delivery.settle(retry.clone()).outcome()).await;
        assert_eq!(settled.expect("an answer"), Settled::Stale, "the lanes are another's");
    }
    let waiting = harness.number("SELECT COUNT(*) FROM antiphon_mq_waiting").await;
    assert_eq!(waiting, 0, "nothing of it was written");
    publish(&healthy, 20..40).await;
    let mut seen = Vec::new();
    while seen.len() < 20 {
        // It takes part again, with new leases.
        tokio::select! {
            deliveries = successor.fetch(8) => seen.extend(settled(deliveries).await),
            deliveries = paused.fetch(8) => seen.extend(settled(deliveries).await),
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (20..40).collect::<Vec<_>>());
    assert!(paused.losses > 0, "it has noticed");
}

async fn settled(deliveries: Vec<antiphon_messaging::Delivery>) -> Vec<usize> {
    let mut numbers = Vec::new();
    for delivery in deliveries {
        let n = number(&delivery);
        if delivery.settle(Settlement::Ack).outcome().await != Settled::Stale {
            numbers.push(n);
        }
    }
    numbers
}
