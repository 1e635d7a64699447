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

use crate::connection::{self, Declared, Facts, Link, Supervisor};
use crate::error::{OpenError, away, refused, trouble};
use crate::inbox::{self, RedisInbox};
use crate::names::Names;
use crate::operate::Operator;
use crate::settings::Settings;
use crate::source::SharedSource;
use crate::{keeper, publish, topology};

/// The longest retry that waits at the server, or in the owner of its lane.
pub(crate) const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);

/// The broker on Redis Streams. Cheap to clone; clones share the connections, which end with the last of
/// them and of their sources.
#[derive(Clone)]
pub struct RedisBroker(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) settings: Arc<Settings>,
    pub(crate) names: Names,
    pub(crate) supervisor: Supervisor,
    declared: Declared,
    capabilities: Capabilities,
}

impl RedisBroker {
    /// Connects, and checks that the server can do what is needed.
    ///
    /// # Errors
    /// The settings make no sense; the server cannot be reached, does not let us in, is too old, a
    /// replica, or throws messages away when its memory is full.
    pub async fn open(settings: Settings) -> Result<Self, OpenError> {
        settings.check().map_err(OpenError::Settings)?;
        let first = connection::connect(&settings).await?;
        let capabilities = Capabilities {
            durability: durability(&first.facts),
            ordered: true,
            holds_keys: true,
            retry_delay_max: RETRY_DELAY_MAX,
            publish_delay_max: Duration::ZERO,
            dead_letters: false,
            counts_attempts: true,
            answers: true,
            replays: true,
            message_bytes_max: settings.message_max.0,
        };
        let (settings, names) = (Arc::new(settings.clone()), Names::new(&settings.prefix));
        let declared = Declared::new(Mutex::new(Topology::default()));
        let supervisor = Supervisor::start(Arc::clone(&settings), first, Arc::clone(&declared));
        Ok(Self(Arc::new(Shared { settings, names, supervisor, declared, capabilities })))
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
        topology::delete_topic(&*self.link().await?, &self.0.names, topic).await
    }

    /// Removes a group for good: what it has done is forgotten. It is not declared again.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn delete_group(&self, group: &str) -> Result<(), SubscribeError> {
        self.0.declared.lock().groups.retain(|declared| declared.name != group);
        topology::delete_group(&*self.link().await?, &self.0.names, group).await
    }

    async fn link(&self) -> Result<Arc<Link>, SubscribeError> {
        let deadline = Instant::now() + self.0.settings.connect_timeout.0;
        match self.0.supervisor.now() {
            Some(link) => Ok(link),
            None => self.0.supervisor.by(deadline).await.ok_or_else(away),
        }
    }
}

/// How safe a message is once the server has answered: with an append-only file it is written before
/// the answer, and synced before it only if the server is told so.
pub(crate) fn durability(facts: &Facts) -> Durability {
    let appends = facts
        .get("appendonly")
        .map_or_else(|| facts.get("aof_enabled") == Some("1"), |appendonly| appendonly == "yes");
    match (appends, facts.get("appendfsync")) {
        (false, _) => Durability::Memory,
        (true, Some("always")) => Durability::Disk,
        (true, _) => Durability::PageCache,
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
                for topic in &group.topics {
                    if !topics.contains(topic) {
                        topics.push(topic.clone());
                    }
                }
            }
        }
    }
}

impl Broker for RedisBroker {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities.clone()
    }

    async fn declare(&self, topology: &Topology) -> Result<(), SubscribeError> {
        topology::declare(&*self.link().await?, &self.0.settings, topology).await?;
        remember(&mut self.0.declared.lock(), topology);
        Ok(())
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<Receipt, PublishError>> {
        let Shared { supervisor, settings, names, .. } = &*self.0;
        publish::publish(supervisor, settings, names, batch).await
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
        let (link, names) = (self.link().await?, self.0.names.clone());
        let record = topology::group(&link, &names, &group, &topics, ordered).await?;
        let context = format!("group {group} cannot be joined");
        if ordered {
            let settings = Arc::clone(&self.0.settings);
            let source = keeper::join(link, settings, group, &record, topics).await;
            return Ok(Box::new(source.map_err(|error| trouble(context, error))?));
        }
        let lease = self.0.settings.lease.0;
        match SharedSource::join(Arc::clone(&link), names, group, topics, lease).await {
            Ok(source) => Ok(Box::new(source)),
            Err(error) => Err(topology::explained(&link, context, error)),
        }
    }

    async fn inbox(&self) -> Result<Box<dyn Inbox>, SubscribeError> {
        let inbox = RedisInbox::open(self.link().await?, &self.0.names).await;
        Ok(Box::new(inbox.map_err(|error| trouble("no inbox can be opened", error))?))
    }

    async fn answer(&self, address: &str, message: Message) -> Result<(), PublishError> {
        let Shared { settings, names, .. } = &*self.0;
        match self.link().await {
            Ok(link) => inbox::answer(&link, settings, names, address, &message).await,
            Err(away) => Err(publish::error(
                address.to_owned(),
                PublishErrorKind::Disconnected,
                Sent::No,
                away.into(),
            )),
        }
    }

    fn operate(&self) -> Option<Arc<dyn Operate>> {
        Some(Arc::new(Operator(Arc::clone(&self.0))))
    }
}

impl fmt::Debug for RedisBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBroker")
            .field("url", &antiphon_config::without_login(&self.0.settings.url))
            .field("connected", &self.0.supervisor.now().is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durability_is_what_the_server_is_told() {
        let with = |values: &[(&str, &str)]| {
            let values =
                values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            durability(&Facts { version: String::new(), values: values.collect() })
        };
        assert_eq!(with(&[]), Durability::Memory);
        assert_eq!(with(&[("appendonly", "yes"), ("appendfsync", "always")]), Durability::Disk);
        let everysec = [("appendonly", "yes"), ("appendfsync", "everysec")];
        assert_eq!(with(&everysec), Durability::PageCache);
        assert_eq!(with(&[("aof_enabled", "1")]), Durability::PageCache);
    }
}
