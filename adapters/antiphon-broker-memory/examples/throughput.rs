//! Messages per second through the whole consumer stack: publish, deliver, context, middleware,
//! handler, metrics, acknowledge.
//!
//! `cargo run --release -p antiphon-broker-memory --example throughput [MESSAGES] [THREADS]`

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use antiphon_broker_memory::{MemoryBroker, Settings};
use antiphon_core::{
    BoxError, BoxFuture, Clock, Component, Context, Health, MessageId, ShutdownHandle,
};
use antiphon_messaging::{
    AnyBroker, Consumer, Fail, Group, Handler, Incoming, Message, Messaging, Start, Topology,
};
use antiphon_telemetry::Telemetry;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What the services run with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOPIC: &str = "bench.orders";
const BATCH: usize = 256;

/// Counts what it handles.
struct Count {
    handled: Arc<AtomicUsize>,
    target: usize,
    done: Arc<Notify>,
}

impl Handler for Count {
    fn handles(&self, _kind: &str) -> bool {
        true
    }

    fn handle<'a>(&'a self, _incoming: &'a Incoming) -> BoxFuture<'a, Result<(), Fail>> {
        Box::pin(async move {
            if self.handled.fetch_add(1, Ordering::Relaxed) + 1 == self.target {
                self.done.notify_one();
            }
            Ok(())
        })
    }
}

fn message(clock: &Clock, context: &Context, n: usize) -> Message {
    let time = clock.now();
    let mut message = Message {
        id: MessageId::new(time),
        topic: TOPIC.to_owned(),
        kind: "bench.v1.OrderPlaced".to_owned(),
        source: "bench".to_owned(),
        key: format!("order-{}", n % 1_000),
        time,
        not_before: None,
        attributes: BTreeMap::new(),
        body: vec![0; 200].into(),
    };
    message.inject(context);
    message
}

/// Runs `count` messages through one consumer; yields messages per second.
async fn measure(count: usize, consumer: Consumer) -> Result<f64, BoxError> {
    let broker = AnyBroker::new(MemoryBroker::with_settings(
        // A short backlog stays in the processor's cache; a long one measures the memory.
        Settings {
            backlog_max: 8_192,
            retained_max: 1_024,
            publish_wait: Duration::from_secs(60),
            ..Settings::default()
        },
        Clock::system(),
    ));
    let (topics, start) = (vec![TOPIC.to_owned()], Start::Earliest);
    let group = Group { name: "bench".into(), topics, start, ordered: false };
    broker.declare(&Topology { topics: vec![TOPIC.into()], groups: vec![group] }).await?;
    let (handled, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let handler = Count { handled, target: count, done: Arc::clone(&done) };
    let messaging = Messaging::new(broker.clone(), Telemetry::new(), Health::new());
    let worker = consumer.topic(TOPIC).handler(handler).build(&messaging)?;
    let (shutdown, drains) = ShutdownHandle::new();
    let begun = Instant::now();
    let worker = tokio::spawn(worker.run(drains));
    let publisher = tokio::spawn(async move {
        let (clock, context) = (Clock::system(), Context::root());
        for first in (0..count).step_by(BATCH) {
            let last = count.min(first + BATCH);
            let batch = (first..last).map(|n| message(&clock, &context, n)).collect();
            for answer in broker.publish(batch).await {
                let _receipt = answer?;
            }
        }
        Ok::<_, BoxError>(())
    });
    publisher.await??;
    done.notified().await;
    let took = begun.elapsed();
    shutdown.drain(Duration::from_secs(5));
    worker.await??;
    Ok(f64::from(u32::try_from(count)?) / took.as_secs_f64())
}

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let count = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let threads = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    for _ in 0..3 {
        for (name, consumer) in [
            ("any order", Consumer::group("bench").concurrency(64)),
            ("ordered", Consumer::group("bench").concurrency(64).ordered()),
            ("ordered, batches of 64", Consumer::group("bench").concurrency(4).batch(64).ordered()),
        ] {
            let rate = runtime.block_on(measure(count, consumer))?;
            println!("{name:<24} {rate:>12.0} messages/s on {threads} threads");
        }
    }
    Ok(())
}
