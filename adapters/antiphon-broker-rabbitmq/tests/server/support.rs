//! What the tests share: a broker at the shared server, names of their own, messages, and the tool
//! that tells a private server what to do.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_broker_rabbitmq::{RabbitmqBroker, Settings};
use antiphon_core::{Clock, MessageId};
use antiphon_messaging::{
    Broker, Delivery, Fetched, Group, Message, PublishError, Receipt, Settled, Settlement, Source,
    Start, Subscription, Topology,
};
use antiphon_testing::services::Private;
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::time::timeout;

use crate::vhost::Vhost;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// A place of its own at the shared server, and settings for it.
pub(crate) async fn place() -> (Vhost, Settings) {
    let vhost = Vhost::create().await;
    let settings = Settings::at(vhost.url());
    (vhost, settings)
}

pub(crate) async fn open(settings: Settings) -> RabbitmqBroker {
    RabbitmqBroker::open(settings).await.unwrap_or_else(|error| {
        unreachable!("{error}; start it with `cargo xtask services up rabbitmq`")
    })
}

pub(crate) fn topology(topic: &str, groups: &[&str], ordered: bool) -> Topology {
    let group = |name: &&str| Group {
        name: (*name).to_owned(),
        topics: vec![topic.to_owned()],
        start: Start::Earliest,
        ordered,
    };
    Topology { topics: vec![topic.to_owned()], groups: groups.iter().map(group).collect() }
}

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

/// Publishes one message.
pub(crate) async fn publish(
    broker: &RabbitmqBroker,
    message: Message,
) -> Result<Receipt, PublishError> {
    let answers =
        timeout(PATIENCE, broker.publish(vec![message])).await.expect("an answer in time");
    answers.into_iter().next().expect("one answer")
}

pub(crate) async fn join(
    broker: &RabbitmqBroker,
    topic: &str,
    group: &str,
    ordered: bool,
) -> Box<dyn Source> {
    let subscription =
        Subscription { group: group.to_owned(), topics: vec![topic.to_owned()], ordered };
    broker.subscribe(subscription).await.expect("the group can be joined")
}

pub(crate) async fn fetch(source: &mut Box<dyn Source>, credits: usize) -> Vec<Delivery> {
    loop {
        match timeout(PATIENCE, source.fetch(credits)).await.expect("deliveries in time") {
            Fetched::Deliveries(deliveries) => return deliveries,
            Fetched::Revoked { done, .. } => drop(done),
            Fetched::Lost(reason) => unreachable!("lost: {reason}"),
        }
    }
}

pub(crate) fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.body).into_owned()
}

pub(crate) async fn ack(delivery: Delivery) {
    assert_ne!(delivery.settle(Settlement::Ack).outcome().await, Settled::Stale);
}

/// Fetches and acknowledges `count` messages.
pub(crate) async fn handle(source: &mut Box<dyn Source>, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        for delivery in fetch(source, count - texts.len()).await {
            texts.push(text(&delivery));
            ack(delivery).await;
        }
    }
    texts
}

/// Waits for the end of a source; yields why it ended.
pub(crate) async fn lost(source: &mut Box<dyn Source>) -> String {
    loop {
        match timeout(PATIENCE, source.fetch(8)).await.expect("the source ends in time") {
            Fetched::Lost(reason) => return reason,
            Fetched::Deliveries(_) => {}
            Fetched::Revoked { done, .. } => drop(done),
        }
    }
}

/// A connection of the bare client, for doing what the broker never does.
pub(crate) async fn bare(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await;
    let connection = connection.expect("the bare client connects");
    let channel = connection.create_channel().await.expect("a channel");
    (connection, channel)
}

/// Runs RabbitMQ's own tool against a private server.
pub(crate) async fn ctl(server: &Private, arguments: &[&str]) -> String {
    let at = server.instance();
    let mut command = std::process::Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl");
    command
        .args(arguments)
        .current_dir(&at.home)
        .env("HOME", &at.home)
        .env("RABBITMQ_NODENAME", format!("antiphon-{}@localhost", at.ports.plain))
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("ERL_EPMD_PORT", at.ports.inner[2].to_string())
        .env("LC_ALL", "C.UTF-8");
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = output.expect("no panic").expect("rabbitmqctl runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let cried = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said} {cried}");
    said
}
