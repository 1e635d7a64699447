//! What lies in the tables.

use std::sync::Arc;
use std::time::Duration;

use antiphon_messaging::{
    AnyBroker, DeadFilter, DeadLetters, DeadReason, Message, Settled, Settlement,
};
use tokio::time::Instant;

use super::{Consumer, PATIENCE, SqlBrokerHarness, declare, message, number, publish};

fn letters(broker: &AnyBroker) -> Arc<dyn DeadLetters> {
    broker.dead_letters().expect("a SQL broker keeps dead letters")
}

/// Waits until the group has so many dead letters.
async fn until_dead(broker: &AnyBroker, count: usize) -> Vec<antiphon_messaging::DeadLetter> {
    let begun = Instant::now();
    loop {
        let filter = DeadFilter::group("billing");
        let list = letters(broker).list(&filter, None, 100).await.expect("the list is read");
        if list.len() == count {
            return list;
        }
        assert!(begun.elapsed() < PATIENCE, "{list:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A row that is no message any more is put aside, with its bytes and the reason.
pub async fn a_broken_row_becomes_a_dead_letter_and_blocks_nobody(harness: &impl SqlBrokerHarness) {
    let broker = harness.open().await;
    declare(&broker).await;
    publish(&broker, 0..5).await;
    harness.execute("UPDATE antiphon_mq_log SET head = 'no head' WHERE seq = 2").await;
    harness.execute("UPDATE antiphon_mq_log SET id = 'x' WHERE seq = 4").await;
    let mut consumer = Consumer::join(&broker).await;
    assert_eq!(consumer.handle(3).await, [0, 2, 4]);
    let list = until_dead(&broker, 2).await;
    assert!(list.iter().all(|letter| letter.deaths[0].code == "decode"), "{list:?}");
    assert!(list.iter().any(|letter| letter.message.body == "1"), "the bytes are kept");

    publish(&broker, 5..6).await;
    let delivery = consumer.fetch(1).await.remove(0);
    let retry = Settlement::Retry { after: Duration::from_millis(300), attempts: 1 };
    assert_eq!(delivery.settle(retry).outcome().await, Settled::Confirmed);
    harness.execute("UPDATE antiphon_mq_waiting SET head = 'no head'").await;
    let mut waited = 0;
    while letters(&broker)
        .list(&DeadFilter::group("billing"), None, 100)
        .await
        .is_ok_and(|list| list.len() < 3)
    {
        waited += 1;
        assert!(waited < 100, "a waiting row that broke was not buried");
        assert!(consumer.is_quiet().await);
    }
}

/// What every group has handled is removed, and no position is used again.
pub async fn handled_messages_are_removed_and_positions_go_on(harness: &impl SqlBrokerHarness) {
    let broker = harness.open().await;
    declare(&broker).await;
    let mut consumer = Consumer::join(&broker).await;
    for start in (0..3_000).step_by(500) {
        publish(&broker, start..start + 500).await;
        assert_eq!(consumer.handle(500).await.len(), 500);
    }
    let begun = Instant::now();
    loop {
        let left = harness.number("SELECT COUNT(*) FROM antiphon_mq_log").await;
        if left <= 1 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{left} rows are left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    publish(&broker, 3_000..3_001).await;
    assert_eq!(consumer.handle(1).await, [3_000]);
    assert_eq!(harness.number("SELECT head FROM antiphon_mq_topic").await, 3_001);
}

/// A key waits for its first message across a restart.
pub async fn what_an_ordered_group_holds_back_survives_a_restart_in_order(
    harness: &impl SqlBrokerHarness,
) {
    let broker = harness.open().await;
    declare(&broker).await;
    let of_key = |n: usize| Message { key: "k".into(), ..message(n) };
    let publish = async |broker: &AnyBroker, batch: Vec<Message>| {
        assert!(broker.publish(batch).await.iter().all(Result::is_ok));
    };
    publish(&broker, vec![of_key(1), of_key(2)]).await;
    let mut consumer = Consumer::join(&broker).await;
    let first = consumer.fetch(1).await.remove(0);
    let retry = Settlement::Retry { after: Duration::from_millis(900), attempts: 1 };
    assert_eq!(first.settle(retry).outcome().await, Settled::Confirmed);
    assert!(consumer.is_quiet().await);
    drop(consumer);
    drop(broker);

    let broker = harness.open().await;
    publish(&broker, vec![of_key(3)]).await;
    let mut consumer = Consumer::join(&broker).await;
    let mut numbers = Vec::new();
    while numbers.len() < 3 {
        for delivery in consumer.fetch(1).await {
            assert_eq!(delivery.attempt, if numbers.is_empty() { 2 } else { 1 });
            numbers.push(number(&delivery));
            assert_ne!(delivery.settle(Settlement::Ack).outcome().await, Settled::Stale);
        }
    }
    assert_eq!(numbers, [1, 2, 3]);
}

/// Messages that were never here are buried by several processes at once, and all come back.
pub async fn letters_of_elsewhere_do_not_displace_each_other(harness: &impl SqlBrokerHarness) {
    let brokers = [harness.open().await, harness.open().await];
    declare(&brokers[0]).await;
    let reason = DeadReason { code: "expired", error: "too \0 old".into(), attempts: 0 };
    let messages: Vec<Message> = (0..20).map(message).collect();
    let burying = messages.iter().enumerate().map(async |(n, message)| {
        letters(&brokers[n % 2]).bury("billing", message, &reason).await.expect("it is kept");
    });
    futures_util::future::join_all(burying).await;
    assert_eq!(until_dead(&brokers[0], 20).await.len(), 20);
    let ids: Vec<_> = messages.iter().map(|message| message.id).collect();
    assert_eq!(letters(&brokers[1]).redrive("billing", &ids).await.expect("redriven"), 20);
    let mut consumer = Consumer::join(&brokers[0]).await;
    assert_eq!(consumer.handle(20).await, (0..20).collect::<Vec<_>>());
    assert!(consumer.is_quiet().await);
}
