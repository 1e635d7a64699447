//! The broker's front: opening, what it can do, publishing, joining.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_messaging::{
    Broker, Capabilities, Durability, Group, Inbox, Message, Operate, PublishError,
    PublishErrorKind, Receipt, Sent, Source, SubscribeError, Subscription, Topology,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::connection::{self, Declared, Link, Supervisor};
use crate::error::{OpenError, away, refused, trouble};
use crate::inbox::{self, NatsInbox};
use crate::operate::Operator;
use crate::publish;
use crate::records::Mode;
use crate::settings::Settings;
use crate::source::SharedSource;
use crate::{keeper, topology};

/// The longest retry that waits at the server, or in the owner of its lane. What waits at the server
/// counts as held there.
pub(crate) const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);

/// The broker on NATS JetStream. Cheap to clone; clones share the connection, which ends with the last
/// of them and of their sources.
#[derive(Clone)]
pub struct NatsBroker(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) settings: Arc<Settings>,
    pub(crate) supervisor: Supervisor,
    declared: Declared,
    capabilities: Capabilities,
}

impl NatsBroker {
    /// Connects, and checks that the server can do what is needed.
    ///
    /// # Errors
    /// The settings make no sense; the server cannot be reached, does not let us in, is too old, or
    /// has no JetStream.
    pub async fn open(settings: Settings) -> Result<Self, OpenError> {
        settings.check().map_err(OpenError::Settings)?;
        let first = connection::connect(&settings).await?;
        let capabilities = Capabilities {
            durability: durability(&settings),
            ordered: true,
            holds_keys: true,
            retry_delay_max: RETRY_DELAY_MAX,
            publish_delay_max: Duration::ZERO,
            dead_letters: false,
            counts_attempts: true,
            answers: true,
            replays: true,
            message_bytes_max: publish::message_bytes_max(first.payload_max),
        };
        let settings = Arc::new(settings);
        let declared = Declared::new(Mutex::new(Topology::default()));
        let supervisor = Supervisor::start(Arc::clone(&settings), first, Arc::clone(&declared));
        Ok(Self(Arc::new(Shared { settings, supervisor, declared, capabilities })))
    }

    /// The topics and groups that were declared through this handle and its clones.
    #[must_use]
    pub fn declared(&self) -> Topology {
        self.0.declared.lock().clone()
    }

    /// Removes a topic for good, with all its messages. It is not declared again.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn delete_topic(&self, topic: &str) -> Result<(), SubscribeError> {
        self.0.declared.lock().topics.retain(|declared| declared != topic);
        topology::delete_topic(&*self.link().await?, topic).await
    }

    /// Removes a group for good: what it has done is forgotten. It is not declared again.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn delete_group(&self, group: &str) -> Result<(), SubscribeError> {
        self.0.declared.lock().groups.retain(|declared| declared.name != group);
        topology::delete_group(&*self.link().await?, group).await
    }

    async fn link(&self) -> Result<Arc<Link>, SubscribeError> {
        let deadline = Instant::now() + self.0.settings.connect_timeout.0;
        match self.0.supervisor.now() {
            Some(link) => Ok(link),
            None => self.0.supervisor.by(deadline).await.ok_or_else(away),
        }
    }
}

/// How safe a message is once a stream has stored it.
fn durability(settings: &Settings) -> Durability {
    match (settings.replicas, settings.sync_always) {
        (2.., _) => Durability::Quorum,
        (_, true) => Durability::Disk,
        _ => Durability::PageCache,
    }
}

/// Adds to what is declared again on a new connection.
fn remember(declared: &mut Topology, topology: &Topology) {
    for topic in &topology.topics {
        if !declared.topics.contains(topic) {
            declared.topics.push(topic.clone());
        }
    }
    for group in &topology.groups {
        match declared.groups.iter_mut().find(|known| known.name == group.name) {
            None => declared.groups.push(group.clone()),
            Some(Group { topics, .. }) => {
                topics.extend(
                    group
                        .topics
                        .iter()
                        .filter(|topic| !topics.contains(topic))
                        .cloned()
                        .collect::<Vec<_>>(),
                );
            }
        }
    }
}

impl Broker for NatsBroker {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities.clone()
    }

    async fn declare(&self, topology: &Topology) -> Result<(), SubscribeError> {
        let link = self.link().await?;
        topology::declare(&link, &self.0.settings, topology).await?;
        remember(&mut self.0.declared.lock(), topology);
        Ok(())
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<Receipt, PublishError>> {
        publish::publish(&self.0.supervisor, &self.0.settings, batch).await
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Box<dyn Source>, SubscribeError> {
        let Subscription { group, mut topics, ordered } = subscription;
        topics.sort();
        topics.dedup();
        if topics.is_empty() {
            return Err(refused(format!("group {group} reads no topic")));
        }
        let (link, settings) = (self.link().await?, Arc::clone(&self.0.settings));
        let mode = if ordered { Mode::Ordered } else { Mode::Shared };
        let record = topology::enter(&link, &group, &topics, mode).await?;
        if ordered {
            return Ok(Box::new(keeper::join(link, settings, record, &topics).await?));
        }
        let ack_wait = settings.ack_wait.0;
        let context = format!("group {group} cannot be joined");
        let source = SharedSource::join(link, group, topics, ack_wait).await;
        Ok(Box::new(source.map_err(|error| trouble(context, error))?))
    }

    async fn inbox(&self) -> Result<Box<dyn Inbox>, SubscribeError> {
        let inbox = NatsInbox::open(self.link().await?).await;
        Ok(Box::new(inbox.map_err(|error| trouble("no inbox can be opened", error))?))
    }

    async fn answer(&self, address: &str, message: Message) -> Result<(), PublishError> {
        match self.link().await {
            Ok(link) => inbox::answer(&link, &self.0.settings, address, message).await,
            Err(error) => Err(publish::error(
                address.to_owned(),
                PublishErrorKind::Disconnected,
                Sent::No,
                Some(error.into()),
            )),
        }
    }

    fn operate(&self) -> Option<Arc<dyn Operate>> {
        Some(Arc::new(Operator(Arc::clone(&self.0))))
    }
}

impl fmt::Debug for NatsBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsBroker")
            .field("url", &antiphon_config::without_login(&self.0.settings.url))
            .field("connected", &self.0.supervisor.now().is_some())
            .finish_non_exhaustive()
    }
}
