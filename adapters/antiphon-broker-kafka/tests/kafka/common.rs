//! What the tests share: settings for quick tests, and a broker that tidies up behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use antiphon_broker_kafka::{KafkaBroker, Settings};
use antiphon_config::HumanDuration;
use antiphon_core::{Clock, MessageId, Timestamp};
use antiphon_messaging::{
    Broker, Capabilities, Delivery, Group, Inbox, Message, Operate, PublishError, Receipt, Source,
    Start, SubscribeError, Subscription, Topology,
};
use antiphon_testing::services::{Private, Service};
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;

/// Settings for quick tests: few partitions, and rebalances that are noticed at once.
pub(crate) fn settings() -> Settings {
    Settings {
        partitions: 4,
        linger: HumanDuration::from_millis(1),
        session_timeout: HumanDuration::from_millis(6_000),
        heartbeat: HumanDuration::from_millis(100),
        handover_timeout: HumanDuration::from_millis(2_000),
        ..Settings::at(Service::Kafka.url())
    }
}

/// A message for a topic.
pub(crate) fn message(topic: &str, key: &str, text: &str) -> Message {
    let time = Clock::system().now();
    Message {
        id: MessageId::new(time),
        topic: topic.to_owned(),
        kind: "antiphon.kafka.Tested".to_owned(),
        source: "tests".to_owned(),
        key: key.to_owned(),
        time: Timestamp::from_millis(time.as_millis()),
        not_before: None,
        attributes: BTreeMap::new(),
        body: text.to_owned().into(),
    }
}

/// A name that nothing else has.
pub(crate) fn unique(what: &str) -> String {
    format!("{what}.{}", MessageId::new(Clock::system().now()))
}

/// A topic and a group of it, under one name.
pub(crate) fn topology(name: &str, ordered: bool) -> Topology {
    let topics = vec![name.to_owned()];
    let group =
        Group { name: name.to_owned(), topics: topics.clone(), start: Start::Earliest, ordered };
    Topology { topics, groups: vec![group] }
}

/// What a member of that group asks for.
pub(crate) fn subscription(name: &str, ordered: bool) -> Subscription {
    Subscription { group: name.to_owned(), topics: vec![name.to_owned()], ordered }
}

/// Publishes messages, all of which must be taken.
pub(crate) async fn send(broker: &impl Broker, batch: Vec<Message>) {
    for answer in broker.publish(batch).await {
        let _receipt = answer.expect("the message is taken");
    }
}

/// The text of a delivery.
pub(crate) fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.body).into_owned()
}

/// A broker of its own, for tests that treat it badly.
pub(crate) async fn private() -> Private {
    match Private::start(Service::Kafka).await {
        Ok(private) => private,
        Err(trouble) => unreachable!("{trouble}; try `cargo xtask services up kafka`"),
    }
}

/// Opens the broker of the tests.
pub(crate) async fn open(settings: Settings) -> KafkaBroker {
    match KafkaBroker::open(settings).await {
        Ok(broker) => broker,
        Err(error) => unreachable!("{error}; start it with `cargo xtask services up kafka`"),
    }
}

/// A broker that deletes what was declared through it.
#[derive(Clone, Debug)]
pub(crate) struct Tidy {
    pub(crate) broker: KafkaBroker,
    made: Arc<Made>,
}

#[derive(Debug, Default)]
struct Made {
    topics: Mutex<BTreeSet<String>>,
    groups: Mutex<BTreeSet<String>>,
}

impl Tidy {
    pub(crate) fn new(broker: KafkaBroker) -> Self {
        Self { broker, made: Arc::default() }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let (topics, groups) =
            (std::mem::take(self.topics.get_mut()), std::mem::take(self.groups.get_mut()));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(delete(&topics, &groups));
        });
        let _ = thread.join();
    }
}

async fn delete(topics: &BTreeSet<String>, groups: &BTreeSet<String>) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", Service::Kafka.url().trim_start_matches("kafka://"))
        .create()
        .expect("an admin client");
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let options = AdminOptions::new();
    if !topics.is_empty() {
        let _ = admin.delete_topics(&topics, &options).await;
    }
    if !groups.is_empty() {
        // Those that still have members stay; the broker forgets them with their topics.
        let _ = admin.delete_groups(&groups, &options).await;
    }
}

impl Broker for Tidy {
    fn capabilities(&self) -> Capabilities {
        self.broker.capabilities()
    }

    async fn declare(&self, topology: &Topology) -> Result<(), SubscribeError> {
        self.made.topics.lock().extend(topology.topics.iter().cloned());
        self.made.groups.lock().extend(topology.groups.iter().map(|group| group.name.clone()));
        self.broker.declare(topology).await
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<Receipt, PublishError>> {
        self.broker.publish(batch).await
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Box<dyn Source>, SubscribeError> {
        self.broker.subscribe(subscription).await
    }

    async fn inbox(&self) -> Result<Box<dyn Inbox>, SubscribeError> {
        self.broker.inbox().await
    }

    async fn answer(&self, address: &str, message: Message) -> Result<(), PublishError> {
        self.broker.answer(address, message).await
    }

    fn operate(&self) -> Option<Arc<dyn Operate>> {
        self.broker.operate()
    }
}
