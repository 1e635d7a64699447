//! What the tests send and how they receive.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_broker_mqtt::{MqttBroker, Settings};
use antiphon_core::{Clock, MessageId};
use antiphon_messaging::{
    Broker, Delivery, Fetched, Group, Message, PublishError, Receipt, Settled, Settlement, Source,
    Start, Subscription, Topology,
};
use rumqttc::v5::MqttOptions;
use tokio::time::timeout;

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The same settings at another address of the server.
pub(crate) fn at(settings: &Settings, url: &str) -> Settings {
    let mut settings = settings.clone();
    url.clone_into(&mut settings.url);
    settings
}

pub(crate) async fn open(settings: Settings) -> MqttBroker {
    MqttBroker::open(settings).await.expect("the broker opens")
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
                Fetched::Lost(reason) => unreachable!("the source was lost: {reason}"),
            }
        }
    };
    timeout(PATIENCE, fetching).await.expect("deliveries come in time")
}

pub(crate) async fn ack(delivery: Delivery) -> Settled {
    delivery.settle(Settlement::Ack).outcome().await
}

/// Acknowledges what must not be too late.
pub(crate) async fn acked(delivery: Delivery) {
    assert_eq!(ack(delivery).await, Settled::Sent);
}

/// Publishes one message.
pub(crate) async fn publish(
    broker: &MqttBroker,
    message: Message,
) -> Result<Receipt, PublishError> {
    broker.publish(vec![message]).await.pop().expect("an answer")
}

/// Fetches and acknowledges `count` messages; yields their texts.
pub(crate) async fn handle(source: &mut Box<dyn Source>, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        for delivery in fetch(source, count - texts.len()).await {
            texts.push(text(&delivery));
            acked(delivery).await;
        }
    }
    texts
}

/// A client of another making, with this id.
pub(crate) fn foreign(url: &str, id: &str) -> MqttOptions {
    let place = url.strip_prefix("mqtt://").expect("an address without TLS");
    let (host, port) = place.split_once(':').expect("host and port");
    MqttOptions::new(id, host, port.parse().expect("a port"))
}
