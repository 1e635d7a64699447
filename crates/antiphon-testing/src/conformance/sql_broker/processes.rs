//! Several processes on one database.

use std::collections::BTreeSet;
use std::time::Duration;

use antiphon_messaging::AnyBroker;
use tokio::time::{Instant, timeout};

use super::{
    Consumer, PATIENCE, SqlBrokerHarness, declare, message, number, publish, publish_until_taken,
};

/// Database and tables are made by whoever comes first, and nobody trips over that.
pub async fn processes_that_start_at_once_agree(harness: &impl SqlBrokerHarness) {
    let starting = (0..4).map(async |start: usize| {
        let broker = harness.open().await;
        declare(&broker).await;
        publish(&broker, start * 10..start * 10 + 10).await;
        broker
    });
    let brokers = futures_util::future::join_all(starting).await;
    let mut consumer = Consumer::join(&brokers[0]).await;
    assert_eq!(consumer.handle(40).await, (0..40).collect::<Vec<_>>());
}

/// The order of a log: a reader that follows while several processes publish, some of whose
/// transactions are rolled back, never goes past a position that is filled later.
pub async fn publishers_in_two_processes_skip_nothing(harness: &impl SqlBrokerHarness) {
    const ROUNDS: usize = 150;
    let seed: u64 = 0x5eed_0b10;
    let reading = harness.open().await;
    declare(&reading).await;
    let mut consumer = Consumer::join(&reading).await;
    let processes = [harness.open().await, harness.open().await];
    // Each task has numbers of its own, and batches and pauses by its own seed.
    let writers = (0..4_usize).map(|task| {
        let broker = processes[task % 2].clone();
        let mut random = fastrand::Rng::with_seed(seed + task as u64);
        tokio::spawn(async move {
            let mut next = task * 1_000_000;
            for _ in 0..ROUNDS {
                let end = next + random.usize(1..6);
                publish(&broker, next..end).await;
                next = end;
                if random.bool() {
                    tokio::time::sleep(Duration::from_micros(random.u64(0..2_000))).await;
                }
            }
            next - task * 1_000_000
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut seen = BTreeSet::new();
    let mut random = fastrand::Rng::with_seed(seed);
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        // Somebody takes positions, fills them, and changes his mind.
        harness
            .execute(
                "BEGIN; UPDATE antiphon_mq_topic SET head = head + 3;
                 INSERT INTO antiphon_mq_log (topic, seq, lane, id, kind, head, body)
                 SELECT id, head, 0, 'x', 'x', 'x', 'x' FROM antiphon_mq_topic; ROLLBACK",
            )
            .await;
        let patience = Duration::from_micros(random.u64(500..20_000));
        if let Ok(deliveries) = timeout(patience, consumer.fetch(64)).await {
            note(&mut seen, deliveries);
        }
    }
    let mut published = 0;
    for writer in writers {
        published += writer.await.expect("the writer has finished");
    }
    let begun = Instant::now();
    while seen.len() < published {
        assert!(begun.elapsed() < PATIENCE, "{} of {published} came; seed {seed}", seen.len());
        note(&mut seen, consumer.fetch(64).await);
    }
    assert!(consumer.is_quiet().await, "seed {seed}");
    assert_eq!(seen.len(), published, "seed {seed}");
}

fn note(seen: &mut BTreeSet<usize>, deliveries: Vec<antiphon_messaging::Delivery>) {
    for delivery in deliveries {
        assert!(seen.insert(number(&delivery)), "{} came twice", number(&delivery));
        drop(delivery.settle(antiphon_messaging::Settlement::Ack));
    }
}

/// Members in two processes share the lanes; each message comes once.
pub async fn processes_share_lanes_and_hear_of_each_others_messages(
    harness: &impl SqlBrokerHarness,
) {
    let (one, two) = (harness.open().await, harness.open().await);
    declare(&one).await;
    let mut first = Consumer::join(&one).await;
    let mut second = Consumer::join(&two).await;
    let (mut by_first, mut by_second) = (BTreeSet::new(), BTreeSet::new());
    let begun = Instant::now();
    let mut published = 0;
    // Until both have got something: lanes go over with a heartbeat.
    while by_first.is_empty()
        || by_second.is_empty()
        || by_first.len() + by_second.len() < published
    {
        assert!(begun.elapsed() < PATIENCE, "{} and {}", by_first.len(), by_second.len());
        if by_first.is_empty() || by_second.is_empty() {
            publish(if published % 20 == 0 { &one } else { &two }, published..published + 10).await;
            published += 10;
        }
        tokio::select! {
            deliveries = first.fetch(16) => note(&mut by_first, deliveries),
            deliveries = second.fetch(16) => note(&mut by_second, deliveries),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
    assert!(by_first.is_disjoint(&by_second), "each once");
}

/// A process that has nothing else to do hears of a message of another within a moment.
pub async fn a_message_of_another_process_comes_soon(harness: &impl SqlBrokerHarness) {
    let (one, two) = (harness.open().await, harness.open().await);
    declare(&one).await;
    let mut consumer = Consumer::join(&one).await;
    publish(&one, 0..1).await;
    consumer.handle(1).await;
    let mut times = Vec::new();
    for n in 1..=11 {
        let begun = Instant::now();
        publish(&two, n..n + 1).await;
        consumer.handle(1).await;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    // A look every 250 ms at the slowest; a loaded machine gets more.
    assert!(times[5] < Duration::from_millis(500), "{times:?}");
}

/// An answer finds the process that waits for it, through the database, and is gone afterwards.
pub async fn answers_go_to_the_process_that_waits(harness: &impl SqlBrokerHarness) {
    let (one, two) = (harness.open().await, harness.open().await);
    declare(&one).await;
    let mut inbox = one.inbox().await.expect("an inbox");
    let address = inbox.address().to_owned();
    for n in 0..5 {
        two.answer(&address, message(n)).await.expect("the answer is taken");
        let answer = timeout(PATIENCE, inbox.receive()).await.expect("it comes");
        assert_eq!(answer.expect("the inbox lives").body, n.to_string());
    }
    let left = harness.number("SELECT COUNT(*) FROM antiphon_mq_answer").await;
    assert_eq!(left, 0, "what was taken is gone");
    two.answer("nobody", message(9)).await.expect("it is nobody's business here");
    assert_eq!(harness.number("SELECT COUNT(*) FROM antiphon_mq_answer").await, 1);
    publish_one(&two).await;
}

async fn publish_one(broker: &AnyBroker) {
    assert_eq!(publish_until_taken(broker, message(0)).await, 0, "and everything else goes on");
}
