//! The broker: the port on one MQTT 5 server.

use std::sync::Arc;
use std::time::Duration;

use antiphon_messaging::{
    Broker, Capabilities, Inbox, Message, Operate, PublishError, Receipt, Source, SubscribeError,
    Subscription, Topology,
};

use crate::connect::Dialer;
use crate::error::OpenError;
use crate::hub::{Guard, Hub};
use crate::inbox;
use crate::member::keeper;
use crate::operate::Operator;
use crate::publish::Publisher;
use crate::settings::Settings;
use crate::settle::RETRY_DELAY_MAX;
use crate::source::MqttSource;
use crate::topology::{self, refused, transient};

/// What a packet takes besides the message itself: names of attributes, lengths, the key twice.
const PACKET_BYTES_MORE: usize = 4_096;

/// The size of packets that messages of this size need.
pub(crate) const fn packet_bytes_for(message_bytes_max: usize) -> usize {
    message_bytes_max + PACKET_BYTES_MORE
}

/// An MQTT 5 server as a broker. Clones share its connections; the last one ends them.
#[derive(Clone, Debug)]
pub struct MqttBroker {
    hub: Arc<Hub>,
    publisher: Arc<Publisher>,
    guard: Arc<Guard>,
}

impl MqttBroker {
    /// Connects, and makes sure that the server can do what is needed. From then on the connection
    /// is made anew whenever it is lost.
    ///
    /// # Errors
    /// A setting cannot be, nobody answers, user or password are wrong, or the server is too old or
    /// can do too little. See [`OpenError`].
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    pub async fn open(settings: Settings) -> Result<Self, OpenError> {
        let (hub, guard) = Hub::open(Dialer::new(settings)?).await?;
        Ok(Self { hub, publisher: Arc::default(), guard: Arc::new(guard) })
    }

    /// Removes a group that is no longer needed, with everything that waits for it. Until then the
    /// server keeps for it whatever is published.
    ///
    /// # Errors
    /// The server cannot be reached.
    ///
    /// # Cancel safety
    /// Dropping the future may leave sessions that nobody knows of. Declare the group and remove it
    /// again.
    pub async fn remove_group(&self, group: &str) -> Result<(), OpenError> {
        topology::remove_group(&self.hub, group).await
    }

    /// Removes a topic: messages for it are refused from then on.
    ///
    /// # Errors
    /// The server cannot be reached.
    ///
    /// # Cancel safety
    /// Dropping the future leaves open whether the topic is removed.
    pub async fn remove_topic(&self, topic: &str) -> Result<(), OpenError> {
        topology::remove_topic(&self.hub, topic).await
    }
}

impl Broker for MqttBroker {
    fn capabilities(&self) -> Capabilities {
        let settings = &self.hub.dialer.settings;
        Capabilities {
            durability: settings.durability.durability(),
            ordered: true,
            holds_keys: true,
            retry_delay_max: RETRY_DELAY_MAX,
            publish_delay_max: Duration::ZERO,
            dead_letters: false,
            counts_attempts: true,
            replays: false,
            answers: true,
            message_bytes_max: settings.message_max.0,
        }
    }

    async fn declare(&self, topology: &Topology) -> Result<(), SubscribeError> {
        topology::declare(&self.hub, topology).await
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<Receipt, PublishError>> {
        self.publisher.publish(&self.hub, batch).await
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Box<dyn Source>, SubscribeError> {
        let Subscription { group, topics, ordered } = subscription;
        let record = self.record(&group).await?;
        if let Some(topic) = topics.iter().find(|topic| !record.topics.contains(*topic)) {
            return Err(refused(format!(
                "group {group} was declared without topic {topic}; declare it with all it reads"
            )));
        }
        let joined = keeper::join(&self.hub.dialer, &group, record, ordered).await;
        let member = joined.map_err(|error| subscribe_error(&group, error))?;
        Ok(Box::new(MqttSource::new(member)))
    }

    async fn inbox(&self) -> Result<Box<dyn Inbox>, SubscribeError> {
        let opened = inbox::open(&self.hub.dialer).await;
        let inbox = opened.map_err(|error| subscribe_error("of answers", error))?;
        Ok(Box::new(inbox))
    }

    async fn answer(&self, address: &str, message: Message) -> Result<(), PublishError> {
        self.publisher.answer(&self.hub, address, &message).await
    }

    fn operate(&self) -> Option<Arc<dyn Operate>> {
        Some(Arc::new(Operator::new(Arc::clone(&self.hub), Arc::clone(&self.guard))))
    }
}

impl MqttBroker {
    /// What is known of a group.
    async fn record(&self, group: &str) -> Result<crate::registry::GroupRecord, SubscribeError> {
        let known = || self.hub.registry.lock().group(group).cloned();
        let within = self.hub.dialer.settings.connect_timeout.0;
        let uplink = self.hub.uplink(within).await.map_err(transient)?;
        if let Some(record) = known() {
            return Ok(record);
        }
        // Another process may have declared it a moment ago.
        uplink.fence().await.map_err(transient)?;
        known().ok_or_else(|| refused(format!("group {group} was not declared; declare it first")))
    }
}

fn subscribe_error(group: &str, error: OpenError) -> SubscribeError {
    SubscribeError {
        context: format!("group {group} cannot be joined"),
        transient: error.is_transient(),
        source: Some(error.into()),
    }
}
