//! What the tests share: brokers at the real server, messages, and removing what a test has made.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_broker_nats::{NatsBroker, Settings};
use antiphon_core::{Clock, MessageId};
use antiphon_messaging::{
    Broker, Delivery, Fetched, Group, Message, Source, Start, Subscription, Topology,
};
use antiphon_testing::services::Service;
use tokio::time::timeout;

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The server of the tests.
pub(crate) fn settings() -> Settings {
    Settings::new(Service::Nats.url())
}

/// A broker.
pub(crate) async fn open(settings: Settings) -> NatsBroker {
    match NatsBroker::open(settings).await {
        Ok(broker) => broker,
        Err(error) => panic!("{error}: start the server with `cargo xtask services up nats`"),
    }
}

/// A new topic, with a group `<topic>.all` that begins at its first message.
pub(crate) async fn topic(broker: &NatsBroker, ordered: bool) -> String {
    let topic = format!("test.{}", MessageId::new(Clock::system().now()));
    let group = Group {
        name: format!("{topic}.all"),
        topics: vec![topic.clone()],
        start: Start::Earliest,
        ordered,
    };
    let topology = Topology { topics: vec![topic.clone()], groups: vec![group] };
    broker.declare(&topology).await.expect("the topology is declared");
    topic
}

/// Joins the group `<topic>.all`.
pub(crate) async fn join(broker: &NatsBroker, topic: &str, ordered: bool) -> Box<dyn Source> {
    let group = format!("{topic}.all");
    let subscription = Subscription { group, topics: vec![topic.to_owned()], ordered };
    let joined = timeout(PATIENCE, async {
        loop {
            match broker.subscribe(subscription.clone()).await {
                Ok(source) => return source,
                Err(error) if error.transient => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    });
    joined.await.expect("the group can be joined")
}

/// A new message.
pub(crate) fn message(topic: &str, key: &str, text: &str) -> Message {
    let time = Clock::system().now();
    Message {
        id: MessageId::new(time),
        topic: topic.to_owned(),
        kind: "test.v1.Happened".to_owned(),
        source: "tests".to_owned(),
        key: key.to_owned(),
        time,
        not_before: None,
        attributes: BTreeMap::new(),
        body: text.to_owned().into(),
    }
}

/// The text of a delivery.
pub(crate) fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.body).into_owned()
}

/// Fetches until `count` deliveries are held; gives up lanes when asked to.
pub(crate) async fn collect(source: &mut Box<dyn Source>, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        match timeout(PATIENCE, source.fetch(count - all.len())).await.expect("it comes in time") {
            Fetched::Deliveries(deliveries) => all.extend(deliveries),
            Fetched::Revoked { done, .. } => drop(done),
            Fetched::Lost(why) => panic!("lost: {why}"),
        }
    }
    all
}

/// Waits for the end of a source; yields why.
pub(crate) async fn lost(source: &mut Box<dyn Source>) -> String {
    let end = async {
        loop {
            match source.fetch(0).await {
                Fetched::Lost(why) => return why,
                Fetched::Revoked { done, .. } => drop(done),
                Fetched::Deliveries(_) => unreachable!("there were no credits"),
            }
        }
    };
    timeout(PATIENCE, end).await.expect("the loss is noticed")
}

/// Removes the topics and groups that were declared through this broker. For tests on a runtime with
/// several threads.
pub(crate) fn clean_up(broker: &NatsBroker) {
    let declared = broker.declared();
    tokio::task::block_in_place(|| {
        tokio::runtime::Handle::current().block_on(async {
            for group in declared.groups {
                let _ = broker.delete_group(&group.name).await;
            }
            for topic in declared.topics {
                let _ = broker.delete_topic(&topic).await;
            }
        });
    });
}
