//! A broker that writes down what it gets and does what a test wants, and a relay in front of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Clock, Component, MessageId, Shutdown, ShutdownHandle, Timestamp};
use antiphon_messaging::{
    AnyBroker, Broker, Capabilities, Durability, Message, PublishError, PublishErrorKind, Receipt,
    Sent, Source, SubscribeError, Subscription, Topology,
};
use antiphon_outbox::{Database, OutboxStore, Relay, RelaySettings};
use antiphon_telemetry::Telemetry;
use antiphon_testing::MemoryStore;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

/// What becomes of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    Take,
    /// It is taken, but the confirmation is lost.
    TakeSilently,
    Refuse(PublishErrorKind),
    /// The call never returns.
    Hang,
}

type React = Box<dyn FnMut(&Message) -> Reaction + Send>;

#[derive(Clone)]
pub(crate) struct TestBroker(Arc<Inner>);

struct Inner {
    log: Mutex<Vec<Message>>,
    react: Mutex<React>,
    capabilities: Capabilities,
}

impl TestBroker {
    pub(crate) fn new() -> Self {
        Self::with_publish_delay(Duration::ZERO)
    }

    pub(crate) fn with_publish_delay(publish_delay_max: Duration) -> Self {
        Self(Arc::new(Inner {
            log: Mutex::default(),
            react: Mutex::new(Box::new(|_| Reaction::Take)),
            capabilities: Capabilities {
                durability: Durability::Memory,
                ordered: true,
                holds_keys: true,
                retry_delay_max: Duration::ZERO,
                publish_delay_max,
                dead_letters: false,
                counts_attempts: false,
                replays: true,
                answers: false,
                message_bytes_max: 1_024,
            },
        }))
    }

    pub(crate) fn react(&self, react: impl FnMut(&Message) -> Reaction + Send + 'static) {
        *self.0.react.lock() = Box::new(react);
    }

    /// What it has, in the order in which it came, repetitions included.
    pub(crate) fn log(&self) -> Vec<Message> {
        self.0.log.lock().clone()
    }

    /// The bodies of what it has.
    pub(crate) fn bodies(&self) -> Vec<String> {
        self.log().iter().map(body).collect()
    }
}

pub(crate) fn body(message: &Message) -> String {
    String::from_utf8(message.body.to_vec()).unwrap()
}

impl Broker for TestBroker {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities.clone()
    }

    async fn declare(&self, _: &Topology) -> Result<(), SubscribeError> {
        Ok(())
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<Receipt, PublishError>> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut answers = Vec::new();
        for message in batch {
            let reaction = (self.0.react.lock())(&message);
            let error = |kind, sent| PublishError {
                topic: message.topic.clone(),
                kind,
                sent,
                source: None,
            };
            answers.push(match reaction {
                Reaction::Take => Ok(Receipt),
                Reaction::TakeSilently => Err(error(PublishErrorKind::Disconnected, Sent::Maybe)),
                Reaction::Refuse(kind) => Err(error(kind, Sent::No)),
                Reaction::Hang => std::future::pending().await,
            });
            if matches!(reaction, Reaction::Take | Reaction::TakeSilently) {
                self.0.log.lock().push(message);
            }
        }
        answers
    }

    async fn subscribe(&self, _: Subscription) -> Result<Box<dyn Source>, SubscribeError> {
        Err(SubscribeError { context: "nobody reads here".into(), transient: false, source: None })
    }
}

/// A clock, a store and a broker.
pub(crate) struct World {
    pub(crate) store: MemoryStore,
    pub(crate) database: Database<MemoryStore>,
    pub(crate) broker: TestBroker,
    pub(crate) telemetry: Telemetry,
}

pub(crate) struct Running {
    pub(crate) handle: ShutdownHandle,
    pub(crate) task: JoinHandle<()>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_broker(TestBroker::new())
    }

    pub(crate) fn with_broker(broker: TestBroker) -> Self {
        let clock = Clock::ticking(Timestamp::from_millis(1_700_000_000_000));
        let store = MemoryStore::new(clock);
        let database = Database::new("orders", store.clone());
        Self { store, database, broker, telemetry: Telemetry::new() }
    }

    pub(crate) fn message(&self, topic: &str, key: &str, body: &str) -> Message {
        let time = self.database.now();
        Message {
            id: MessageId::new(time),
            topic: topic.into(),
            kind: "test.Happened".into(),
            source: "orders".into(),
            key: key.into(),
            time,
            not_before: None,
            attributes: BTreeMap::new(),
            body: body.to_owned().into(),
        }
    }

    /// Commits one message and answers with its id.
    pub(crate) async fn emit(&self, topic: &str, key: &str, body: &str) -> MessageId {
        let mut tx = self.database.begin().await.unwrap();
        let id = tx.push(self.message(topic, key, body));
        tx.commit().await.unwrap();
        id
    }

    pub(crate) fn relay(&self) -> Running {
        self.relay_on(&self.database, RelaySettings::default())
    }

    pub(crate) fn relay_with(&self, settings: RelaySettings) -> Running {
        self.relay_on(&self.database, settings)
    }

    pub(crate) fn relay_on(
        &self,
        database: &Database<MemoryStore>,
        settings: RelaySettings,
    ) -> Running {
        let broker = AnyBroker::new(self.broker.clone());
        let relay = Relay::new(database, broker, &self.telemetry).with_settings(settings);
        let (handle, shutdown) = ShutdownHandle::new();
        Running { handle, task: tokio::spawn(run(relay, shutdown)) }
    }

    /// How many rows the outbox holds.
    pub(crate) async fn backlog(&self) -> u64 {
        self.store.backlog().await.unwrap().0
    }

    /// Waits (in virtual time) until the outbox is empty.
    pub(crate) async fn settle(&self) {
        let empty = async {
            while self.backlog().await > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), empty)
            .await
            .unwrap_or_else(|_| panic!("rows are left; the broker has {:?}", self.broker.bodies()));
    }
}

async fn run(relay: Relay<MemoryStore>, shutdown: Shutdown) {
    relay.run(shutdown).await.unwrap();
}

pub(crate) async fn wait(time: Duration) {
    tokio::time::sleep(time).await;
}

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
