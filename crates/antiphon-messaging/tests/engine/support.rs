//! A broker that does what a test says, and writes down how deliveries were settled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use antiphon_core::{BoxFuture, Component, Health, MessageId, ShutdownHandle, Timestamp};
use antiphon_messaging::{
    AnyBroker, Broker, Capabilities, Consumer, Delivery, Durability, Fail, Fetched, Handler,
    Incoming, Message, Messaging, PublishError, Receipt, Settle, Settled, Settlement, Settling,
    Source, SubscribeError, Subscription, Topology,
};
use antiphon_telemetry::Telemetry;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

pub(crate) const KIND: &str = "test.v1.Happened";

/// Everything that can be asked for.
pub(crate) fn able() -> Capabilities {
    Capabilities {
        durability: Durability::Memory,
        ordered: true,
        holds_keys: true,
        retry_delay_max: Duration::from_secs(86_400),
        publish_delay_max: Duration::from_secs(86_400),
        dead_letters: true,
        counts_attempts: true,
        replays: true,
        answers: false,
        message_bytes_max: 1 << 20,
    }
}

/// The broker's end of all subscriptions.
#[derive(Clone)]
pub(crate) struct Script(Arc<Inner>);

struct Inner {
    capabilities: Capabilities,
    feeding: Mutex<Option<mpsc::UnboundedSender<Fetched>>>,
    subscribed: Notify,
    subscriptions: AtomicU64,
    settled: Arc<Settlements>,
    credits: Mutex<Vec<usize>>,
    refusal: Mutex<Option<SubscribeError>>,
}

#[derive(Default)]
struct Settlements {
    list: Mutex<Vec<(u64, Settlement)>>,
    changed: Notify,
}

impl Settle for Settlements {
    fn settle(&self, token: u64, settlement: Settlement) -> Settling {
        self.list.lock().push((token, settlement));
        self.changed.notify_one();
        Settling::Done(Settled::Confirmed)
    }
}

impl Script {
    pub(crate) fn new(capabilities: Capabilities) -> Self {
        Self(Arc::new(Inner {
            capabilities,
            feeding: Mutex::default(),
            subscribed: Notify::new(),
            subscriptions: AtomicU64::new(0),
            settled: Arc::default(),
            credits: Mutex::default(),
            refusal: Mutex::default(),
        }))
    }

    pub(crate) fn delivery(
        &self,
        token: u64,
        message: Message,
        attempt: u32,
        lane: u32,
    ) -> Delivery {
        Delivery::new(message, attempt, lane, token, Arc::clone(&self.0.settled) as Arc<dyn Settle>)
    }

    pub(crate) async fn feed(&self, fetched: Fetched) {
        self.subscribed().await;
        let feeding = self.0.feeding.lock();
        assert!(feeding.as_ref().expect("subscribed").send(fetched).is_ok(), "nobody fetches");
    }

    /// Feeds first attempts with these tokens and keys, in lane 0.
    pub(crate) async fn deliver(&self, messages: &[(u64, &str)]) {
        let deliveries =
            messages.iter().map(|(token, key)| self.delivery(*token, message(key), 1, 0)).collect();
        self.feed(Fetched::Deliveries(deliveries)).await;
    }

    pub(crate) async fn subscribed(&self) {
        while self.0.feeding.lock().is_none() {
            self.0.subscribed.notified().await;
        }
    }

    pub(crate) fn subscriptions(&self) -> u64 {
        self.0.subscriptions.load(Ordering::SeqCst)
    }

    /// Waits until so many settlements were made; takes them.
    pub(crate) async fn settled(&self, count: usize) -> Vec<(u64, Settlement)> {
        let wait = async {
            while self.0.settled.list.lock().len() < count {
                self.0.settled.changed.notified().await;
            }
        };
        let within = tokio::time::timeout(Duration::from_secs(600), wait).await;
        assert!(within.is_ok(), "only these were settled: {:?}", self.0.settled.list.lock());
        std::mem::take(&mut self.0.settled.list.lock())
    }

    pub(crate) fn nothing_settled(&self) -> bool {
        self.0.settled.list.lock().is_empty()
    }

    pub(crate) fn credits_asked(&self) -> Vec<usize> {
        self.0.credits.lock().clone()
    }

    pub(crate) fn refuse_next(&self, transient: bool) {
        let context = "the broker says no".to_owned();
        *self.0.refusal.lock() = Some(SubscribeError { context, transient, source: None });
    }
}

impl Broker for Script {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities.clone()
    }

    async fn declare(&self, _topology: &Topology) -> Result<(), SubscribeError> {
        self.0.refusal.lock().take().map_or(Ok(()), Err)
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<Receipt, PublishError>> {
        batch.into_iter().map(|_| Ok(Receipt)).collect()
    }

    async fn subscribe(&self, _: Subscription) -> Result<Box<dyn Source>, SubscribeError> {
        let (feed, fed) = mpsc::unbounded_channel();
        *self.0.feeding.lock() = Some(feed);
        self.0.subscriptions.fetch_add(1, Ordering::SeqCst);
        self.0.subscribed.notify_one();
        Ok(Box::new(Scripted { script: self.clone(), fed }))
    }
}

struct Scripted {
    script: Script,
    fed: mpsc::UnboundedReceiver<Fetched>,
}

impl Source for Scripted {
    fn fetch(&mut self, credits: usize) -> BoxFuture<'_, Fetched> {
        self.script.0.credits.lock().push(credits);
        Box::pin(async {
            let fetched = self.fed.recv().await.unwrap_or(Fetched::Lost("fed up".into()));
            if matches!(fetched, Fetched::Lost(_)) {
                *self.script.0.feeding.lock() = None;
            }
            fetched
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

pub(crate) fn message(key: &str) -> Message {
    Message {
        id: MessageId::new(Timestamp::from_millis(1)),
        topic: "test".into(),
        kind: KIND.into(),
        source: "tests".into(),
        key: key.into(),
        time: Timestamp::from_millis(1),
        not_before: None,
        attributes: BTreeMap::new(),
        body: bytes::Bytes::new(),
    }
}

/// A handler made of a function.
pub(crate) struct With<F>(pub(crate) F);

impl<F, Fut> Handler for With<F>
where
    F: Fn(Incoming) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Fail>> + Send + 'static,
{
    fn handles(&self, kind: &str) -> bool {
        kind == KIND
    }

    fn handle<'a>(&'a self, incoming: &'a Incoming) -> BoxFuture<'a, Result<(), Fail>> {
        let work = (self.0)(incoming.clone());
        Box::pin(work)
    }
}

/// A consumer at work.
pub(crate) struct Running {
    pub(crate) shutdown: ShutdownHandle,
    pub(crate) task: JoinHandle<Result<(), antiphon_core::BoxError>>,
    pub(crate) health: Health,
    pub(crate) telemetry: Telemetry,
}

impl Running {
    pub(crate) async fn drain(self) {
        self.shutdown.drain(Duration::from_secs(5));
        self.task.await.expect("no panic").expect("a good end");
    }
}

pub(crate) fn run(script: &Script, consumer: Consumer) -> Running {
    let (health, telemetry) = (Health::new(), Telemetry::new());
    let broker = AnyBroker::new(script.clone());
    let messaging = Messaging::new(broker, telemetry.clone(), health.clone());
    let worker = consumer.topic("test").build(&messaging).expect("it fits");
    let (shutdown, drains) = ShutdownHandle::new();
    Running { shutdown, task: tokio::spawn(worker.run(drains)), health, telemetry }
}
