//! A service over the store and the broker in memory: two types of events, and what runs them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use antiphon_broker_memory::MemoryBroker;
use antiphon_core::{Clock, Component, Health, ShutdownHandle, Timestamp};
use antiphon_messaging::{
    AnyBroker, Broker, Consumer, DeadFilter, DeadLetter, Event, Messaging, Payload,
};
use antiphon_outbox::{Database, Relay, Tx};
use antiphon_telemetry::Telemetry;
use antiphon_testing::MemoryStore;
use antiphon_testing::memory_store::{Fault, Hook, Point};
use buffa_types::google::protobuf::StringValue;
use tokio::task::JoinHandle;

/// Makes an event type around one text, which is also its key up to a dash.
macro_rules! event {
    ($name:ident, $kind:literal, $topic:literal) => {
        #[derive(Clone, Debug, Default, PartialEq)]
        pub(crate) struct $name(StringValue);

        impl $name {
            pub(crate) fn new(text: &str) -> Self {
                Self(StringValue { value: text.into(), ..StringValue::default() })
            }

            pub(crate) fn text(&self) -> &str {
                &self.0.value
            }
        }

        buffa::impl_default_instance!($name);

        impl buffa::Message for $name {
            fn compute_size(&self, cache: &mut buffa::SizeCache) -> u32 {
                self.0.compute_size(cache)
            }

            fn write_to(&self, cache: &mut buffa::SizeCache, buf: &mut impl buffa::EncodeSink) {
                self.0.write_to(cache, buf);
            }

            fn merge_field(
                &mut self,
                tag: buffa::encoding::Tag,
                buf: &mut impl bytes::Buf,
                context: buffa::DecodeContext<'_>,
            ) -> Result<(), buffa::DecodeError> {
                self.0.merge_field(tag, buf, context)
            }

            fn clear(&mut self) {
                self.0.clear();
            }
        }

        impl Payload for $name {
            const KIND: &'static str = $kind;
        }

        impl Event for $name {
            const TOPIC: &'static str = $topic;
            fn key(&self) -> String {
                self.text().split('-').next().unwrap_or("").to_owned()
            }
        }
    };
}

event!(Placed, "test.Placed", "orders");
event!(Awarded, "test.Awarded", "points");

/// Calls the hook of a test before each call of the store.
pub(crate) fn faults(hook: impl Fn(Point, u32) -> Fault + Send + Sync + 'static) -> Arc<dyn Hook> {
    let counts: [AtomicU32; 32] = std::array::from_fn(|_| AtomicU32::new(0));
    Arc::new(move |point: Point| {
        let count = counts[point as usize % 32].fetch_add(1, Ordering::Relaxed);
        hook(point, count)
    })
}

pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) store: MemoryStore,
    pub(crate) database: Database<MemoryStore>,
    pub(crate) broker: MemoryBroker,
    pub(crate) telemetry: Telemetry,
    running: Vec<(ShutdownHandle, JoinHandle<()>)>,
}

impl World {
    pub(crate) fn new() -> Self {
        let clock = Clock::ticking(Timestamp::from_millis(1_700_000_000_000));
        let store = MemoryStore::new(clock.clone());
        Self {
            database: Database::new("orders", store.clone()),
            store,
            broker: MemoryBroker::new(clock.clone()),
            clock,
            telemetry: Telemetry::new(),
            running: Vec::new(),
        }
    }

    /// The same database, through a process with faults.
    pub(crate) fn faulty(&self, hook: Arc<dyn Hook>) -> Database<MemoryStore> {
        Database::new("orders", self.store.opened_with(hook))
    }

    pub(crate) fn run(&mut self, component: impl Component) {
        let (handle, shutdown) = ShutdownHandle::new();
        let task = tokio::spawn(async move { component.run(shutdown).await.unwrap() });
        self.running.push((handle, task));
    }

    pub(crate) fn relay(&mut self) {
        let broker = AnyBroker::new(self.broker.clone());
        self.run(Relay::new(&self.database, broker, &self.telemetry));
    }

    pub(crate) fn consume(&mut self, consumer: impl Into<Consumer>) {
        let messaging = Messaging {
            clock: self.clock.clone(),
            ..Messaging::new(
                AnyBroker::new(self.broker.clone()),
                self.telemetry.clone(),
                Health::new(),
            )
        };
        self.run(consumer.into().build(&messaging).unwrap());
    }

    /// Kills everything that runs.
    pub(crate) fn crash(&mut self) {
        for (_, task) in self.running.drain(..) {
            task.abort();
        }
    }

    pub(crate) async fn place(&self, text: &str) {
        let mut tx = self.database.begin().await.unwrap();
        tx.emit(&Placed::new(text));
        tx.commit().await.unwrap();
    }

    pub(crate) async fn dead_letters(&self) -> Vec<DeadLetter> {
        let letters = self.broker.dead_letters().unwrap();
        letters.list(&DeadFilter::default(), None, 100).await.unwrap()
    }

    pub(crate) fn number(&self, key: &str) -> u64 {
        self.store.row("numbers", key).map_or(0, |bytes| parse(&bytes))
    }

    /// Waits, in virtual time, until `done`.
    pub(crate) async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !done(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(secs(300), waiting).await;
        assert!(waited.is_ok(), "it never came about that {what}");
    }
}

fn parse(bytes: &[u8]) -> u64 {
    std::str::from_utf8(bytes).unwrap().parse().unwrap()
}

/// The business work of these tests: adds one to a number.
pub(crate) async fn add_one(
    tx: &mut Tx<MemoryStore>,
    key: &str,
) -> Result<u64, antiphon_outbox::StoreError> {
    let before = tx.get_for_update("numbers", key).await?.map_or(0, |bytes| parse(&bytes));
    tx.put("numbers", key, (before + 1).to_string()).await?;
    Ok(before + 1)
}

pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
