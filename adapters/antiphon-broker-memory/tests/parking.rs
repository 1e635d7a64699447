//! A consumer on a broker that can neither wait nor bury, with another broker that does it instead.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use antiphon_broker_memory::{MemoryBroker, Settings};
use antiphon_core::{
    BoxFuture, Clock, Component, Health, MessageId, RetryPolicy, ShutdownHandle, Timestamp,
};
use antiphon_messaging::{
    AnyBroker, Broker, Consumer, DeadFilter, Fail, Group, Handler, Incoming, Message, Messaging,
    Start, Topology,
};
use antiphon_telemetry::Telemetry;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

const KIND: &str = "test.v1.Happened";

/// Reports what it gets; fails with what the key says until it is healed.
struct Reporting {
    seen: mpsc::UnboundedSender<Incoming>,
    healed: Arc<AtomicBool>,
}

impl Handler for Reporting {
    fn handles(&self, kind: &str) -> bool {
        kind == KIND
    }

    fn handle<'a>(&'a self, incoming: &'a Incoming) -> BoxFuture<'a, Result<(), Fail>> {
        let _ = self.seen.send(incoming.clone());
        let outcome = match incoming.message.key.as_str() {
            _ if self.healed.load(Ordering::SeqCst) => Ok(()),
            "late" => Err(Fail::retry_after(Duration::from_secs(60), "not yet")),
            _ => Err(Fail::permanent("never").with_code("decode")),
        };
        Box::pin(std::future::ready(outcome))
    }
}

fn limited() -> MemoryBroker {
    let mut settings = Settings::default();
    settings.capabilities.dead_letters = false;
    settings.capabilities.retry_delay_max = Duration::ZERO;
    settings.capabilities.publish_delay_max = Duration::ZERO;
    MemoryBroker::with_settings(settings, Clock::system())
}

fn message(key: &str) -> Message {
    Message {
        id: MessageId::new(Clock::system().now()),
        topic: "t".into(),
        kind: KIND.into(),
        source: "tests".into(),
        key: key.into(),
        time: Timestamp::from_millis(1),
        not_before: None,
        attributes: BTreeMap::from([("note".into(), "kept".into())]),
        body: bytes::Bytes::from_static(b"body"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_parked_comes_back_as_it_was_and_dead_letters_can_be_redriven() {
    let (broker, parking) = (limited(), MemoryBroker::default());
    let (topics, start) = (vec!["t".to_owned()], Start::Earliest);
    let group = Group { name: "g".into(), topics, start, ordered: false };
    let topology = Topology { topics: vec!["t".into()], groups: vec![group] };
    broker.declare(&topology).await.expect("it is declared");
    let (seen, mut incoming) = mpsc::unbounded_channel();
    let healed = Arc::new(AtomicBool::new(false));
    let handler = Reporting { seen, healed: Arc::clone(&healed) };
    let consumer = Consumer::group("g")
        .topic("t")
        .handler(handler)
        .retry(RetryPolicy::exponential(Duration::from_secs(1), Duration::from_secs(9)));
    let mut messaging =
        Messaging::new(AnyBroker::new(broker.clone()), Telemetry::new(), Health::new());
    messaging.parking = Some(AnyBroker::new(parking.clone()));
    let worker = consumer.build(&messaging).expect("the two together can do it");
    let (shutdown, drains) = ShutdownHandle::new();
    let task = tokio::spawn(worker.run(drains));
    let mut next = async || {
        let within = timeout(Duration::from_secs(600), incoming.recv()).await;
        let incoming: Incoming = within.expect("it comes in time").expect("consumers go on");
        (incoming.attempt, (*incoming.message).clone())
    };

    let (late, lost) = (message("late"), message("lost"));
    let begun = Instant::now();
    let _receipts = broker.publish(vec![late.clone()]).await;
    assert_eq!(next().await, (1, late.clone()));
    assert_eq!(next().await, (2, late));
    assert!(begun.elapsed() >= Duration::from_secs(60), "{:?}", begun.elapsed());

    let _receipts = broker.publish(vec![lost.clone()]).await;
    assert_eq!(next().await, (1, lost.clone()));
    tokio::time::sleep(Duration::from_millis(10)).await;
    let letters = Broker::dead_letters(&parking).expect("it keeps them");
    let kept = letters.list(&DeadFilter::group("g"), None, 10).await.expect("they are read");
    assert_eq!(kept.len(), 1);
    assert_eq!((kept[0].message.id, kept[0].deaths[0].code.as_str()), (lost.id, "decode"));

    healed.store(true, Ordering::SeqCst);
    assert_eq!(letters.redrive("g", &[lost.id]).await.expect("redriven"), 1);
    assert_eq!(next().await, (1, lost));
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(letters.list(&DeadFilter::default(), None, 10).await.expect("read").is_empty());
    shutdown.drain(Duration::from_secs(5));
    task.await.expect("no panic").expect("a good end");
}
