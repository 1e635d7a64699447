//! What the tests have in common: a prefix of their own at the shared server, and what they send.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_broker_mqtt::{MqttBroker, Settings};
use antiphon_core::{Clock, MessageId};
use antiphon_messaging::{
    Broker, Delivery, Fetched, Group, Message, Settled, Settlement, Source, Start, Subscription,
    Topology,
};
use antiphon_testing::services::Service;
use tokio::time::timeout;

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A prefix that nobody else uses. What is below it is removed in the end.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) settings: Settings,
}

impl Scratch {
    /// At the server that all tests share.
    pub(crate) fn new() -> Self {
        Self::at(&Service::Mosquitto.url())
    }

    pub(crate) fn at(url: &str) -> Self {
        let mut settings = Settings::at(url);
        settings.prefix = format!("test-{:016x}", fastrand::u64(..));
        Self { settings }
    }

    pub(crate) async fn open(&self) -> MqttBroker {
        self.open_at(&self.settings.url).await
    }

    /// The same prefix at another address of the server.
    pub(crate) async fn open_at(&self, url: &str) -> MqttBroker {
        let mut settings = self.settings.clone();
        url.clone_into(&mut settings.url);
        MqttBroker::open(settings).await.unwrap_or_else(|error| {
            panic!("{error}; start the server with `cargo xtask services up mosquitto`")
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let settings = self.settings.clone();
        let clean = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                // A server of the test's own may be gone already, and all with it.
                let Ok(broker) = MqttBroker::open(settings).await else { return };
                let operate = broker.operate().expect("it can be looked at");
                for group in operate.groups().await.unwrap_or_default() {
                    let _ = broker.remove_group(&group.name).await;
                }
                for topic in operate.topics().await.unwrap_or_default() {
                    let _ = broker.remove_topic(&topic.name).await;
                }
            });
        };
        let _ = std::thread::spawn(clean).join();
    }
}

/// Declares `topic` with one group that reads it.
pub(crate) async fn declare(broker: &MqttBroker, topic: &str, group: &str) {
    let topology = Topology {
        topics: vec![topic.to_owned()],
        groups: vec![Group {
            name: group.to_owned(),
            topics: vec![topic.to_owned()],
            start: Start::Latest,
            ordered: true,
        }],
    };
    broker.declare(&topology).await.expect("it is declared");
}

pub(crate) async fn join(broker: &MqttBroker, topic: &str, group: &str) -> Box<dyn Source> {
    let topics = vec![topic.to_owned()];
    let subscription = Subscription { group: group.to_owned(), topics, ordered: true };
    broker.subscribe(subscription).await.expect("the group can be joined")
}

pub(crate) fn message(topic: &str, key: &str, text: &str) -> Message {
    let time = Clock::system().now();
    Message {
        id: MessageId::new(time),
        topic: topic.to_owned(),
        kind: "test.Sent".to_owned(),
        source: "test".to_owned(),
        key: key.to_owned(),
        time,
        not_before: None,
        attributes: BTreeMap::new(),
        body: text.to_owned().into(),
    }
}

pub(crate) fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.body).into_owned()
}

/// Fetches once; gives up lanes when asked to.
pub(crate) async fn fetch(source: &mut Box<dyn Source>, credits: usize) -> Vec<Delivery> {
    let fetching = async {
        loop {
            match source.fetch(credits).await {
                Fetched::Deliveries(deliveries) => return deliveries,
                Fetched::Revoked { done, .. } => drop(done),
                Fetched::Lost(reason) => panic!("the source was lost: {reason}"),
            }
        }
    };
    timeout(PATIENCE, fetching).await.expect("deliveries come in time")
}

pub(crate) async fn ack(delivery: Delivery) -> Settled {
    delivery.settle(Settlement::Ack).outcome().await
}
