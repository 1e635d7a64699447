//! Messages that others put into our streams, through the consumer engine; and what is left to do of a
//! group that changes how it reads.

use std::sync::Arc;
use std::time::Duration;

use antiphon_broker_memory::MemoryBroker;
use antiphon_core::{BoxFuture, Component, Health, ShutdownHandle};
use antiphon_messaging::{
    AnyBroker, Broker, Consumer, DeadFilter, DeadLetter, Fail, Fetched, Handler, Incoming,
    Messaging, Settled, Settlement,
};
use antiphon_telemetry::Telemetry;
use antiphon_testing::services::Service;
use async_nats::{HeaderMap, jetstream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::common::{PATIENCE, clean_up, collect, join, message, open, settings, text, topic};

/// Reports what it gets.
struct Reporting(mpsc::UnboundedSender<Incoming>);

impl Handler for Reporting {
    fn handles(&self, kind: &str) -> bool {
        kind == "test.v1.Happened"
    }

    fn handle<'a>(&'a self, incoming: &'a Incoming) -> BoxFuture<'a, Result<(), Fail>> {
        let _ = self.0.send(incoming.clone());
        Box::pin(std::future::ready(Ok(())))
    }
}

async fn foreign_messages_become_dead_letters(ordered: bool) {
    let broker = open(settings()).await;
    let topic = topic(&broker, ordered).await;
    let client = async_nats::connect(Service::Nats.url()).await.expect("it connects");
    let context = jetstream::new(client);
    let mut forged = HeaderMap::new();
    for (name, value) in
        [("ce-specversion", "1.0"), ("ce-id", "not-a-uuid"), ("ce-type", "test.v1.Happened")]
    {
        forged.insert(name, value);
    }
    let subject = format!("{topic}.L{}", antiphon_messaging::lane_of("k"));
    let plain = context.publish(subject.clone(), "plain".into()).await.expect("sent");
    plain.await.expect("stored");
    let forged = context.publish_with_headers(subject, forged, "forged".into()).await;
    forged.expect("sent").await.expect("stored");
    let answers = broker.publish(vec![message(&topic, "k", "ours")]).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");

    let (seen, mut incoming) = mpsc::unbounded_channel();
    let parking = MemoryBroker::default();
    let mut messaging =
        Messaging::new(AnyBroker::new(broker.clone()), Telemetry::new(), Health::new());
    messaging.parking = Some(AnyBroker::new(parking.clone()));
    let group = format!("{topic}.all");
    let mut consumer = Consumer::group(&group).topic(&topic).handler(Reporting(seen));
    if ordered {
        consumer = consumer.ordered();
    }
    let (shutdown, drains) = ShutdownHandle::new();
    let worker = consumer.build(&messaging).expect("it fits");
    let task = tokio::spawn(worker.run(drains));
    let next = timeout(PATIENCE, incoming.recv()).await.expect("ours is not blocked");
    assert_eq!(next.map(|next| next.message.body.clone()), Some("ours".into()));
    let letters = parking.dead_letters().expect("it keeps them");
    let kept = timeout(PATIENCE, async {
        loop {
            let kept = letters.list(&DeadFilter::group(&group), None, 10).await.expect("a list");
            if kept.len() == 2 {
                return kept;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let kept = kept.await.expect("both are kept");
    let reason = |text: &'static str| -> &DeadLetter {
        kept.iter().find(|letter| letter.message.body == text).expect("a letter")
    };
    let (plain, forged) = (reason("plain"), reason("forged"));
    assert!(plain.deaths[0].error.contains("specversion"), "{plain:?}");
    assert!(forged.deaths[0].error.contains("not a UUID"), "{forged:?}");
    assert_eq!(plain.deaths[0].code, "decode");
    shutdown.drain(PATIENCE);
    task.await.expect("no panic").expect("a good end");
    clean_up(&broker);
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_messages_become_dead_letters_of_a_shared_group() {
    foreign_messages_become_dead_letters(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_messages_become_dead_letters_of_an_ordered_group() {
    foreign_messages_become_dead_letters(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_group_can_become_ordered_when_nobody_reads_it() {
    let broker = open(settings()).await;
    let topic = topic(&broker, false).await;
    let messages = (0..6).map(|n| message(&topic, "k", &n.to_string())).collect();
    assert!(broker.publish(messages).await.iter().all(Result::is_ok));
    let mut member = join(&broker, &topic, false).await;
    for delivery in collect(&mut member, 3).await {
        assert_ne!(delivery.settle(Settlement::Ack).outcome().await, Settled::Stale);
    }
    timeout(PATIENCE, member.close()).await.expect("it closes");
    let mut member = join(&broker, &topic, true).await;
    let texts: Vec<String> = collect(&mut member, 3).await.iter().map(text).collect();
    assert_eq!(texts, ["3", "4", "5"], "it goes on where it was");
    let error = broker
        .subscribe(antiphon_messaging::Subscription {
            group: format!("{topic}.all"),
            topics: vec![topic.clone()],
            ordered: false,
        })
        .await
        .err()
        .expect("it is read in order");
    assert!(!error.transient && error.to_string().contains("in order"), "{error}");
    clean_up(&broker);
}

/// One key whose message is not handled, and thousands of others behind and beside it: the others go
/// on, and what is held is bounded.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_not_handled_stops_neither_others_nor_itself() {
    const COUNT: usize = 3_000;
    let broker = open(settings()).await;
    let topic = topic(&broker, true).await;
    let key = |n: usize| if n == 0 { "stuck".to_owned() } else { format!("key-{}", n % 50) };
    let messages = (0..COUNT).map(|n| message(&topic, &key(n), &n.to_string())).collect();
    assert!(broker.publish(messages).await.iter().all(Result::is_ok));
    let mut member = join(&broker, &topic, true).await;
    let mut stuck = None;
    let mut handled = 0;
    while handled < COUNT - 1 {
        let fetched = timeout(PATIENCE, member.fetch(64)).await.expect("the others go on");
        let Fetched::Deliveries(deliveries) = fetched else { panic!("{fetched:?}") };
        for delivery in deliveries {
            if text(&delivery) == "0" {
                stuck = Some(delivery);
            } else {
                handled += 1;
                let _ = delivery.settle(Settlement::Ack).outcome().await;
            }
        }
    }
    // Given up unhandled, it alone comes again; the others are known to be done.
    drop(stuck);
    drop(member);
    let mut member = join(&broker, &topic, true).await;
    let again = collect(&mut member, 1).await;
    assert_eq!(again.iter().map(text).collect::<Vec<_>>(), ["0"]);
    assert!(timeout(Duration::from_millis(300), member.fetch(8)).await.is_err(), "that was all");
    let _: Arc<_> = Arc::clone(&again[0].message);
    clean_up(&broker);
}
