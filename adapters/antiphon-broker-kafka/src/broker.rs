//! The broker's front: opening it, what it can do, publishing, joining.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_messaging::{
    Broker, Capabilities, Durability, Inbox, Message, Operate, PublishError, Receipt, Source,
    SubscribeError, Subscription, Topology,
};
use rdkafka::admin::{ConfigEntry, ResourceSpecifier};

use crate::cluster::{self, Cluster, check_version, number};
use crate::error::OpenError;
use crate::inbox;
use crate::operate::Operator;
use crate::publish::Publisher;
use crate::settings::Settings;
use crate::source::{self, RETRY_DELAY_MAX};
use crate::topology;

/// A Kafka cluster. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct KafkaBroker(Arc<Inner>);

struct Inner {
    cluster: Arc<Cluster>,
    publisher: Publisher,
    durability: Durability,
}

impl KafkaBroker {
    /// Reaches the cluster and looks whether it will do.
    ///
    /// # Errors
    /// The settings contradict each other, nobody answers, TLS or the credentials are refused, or
    /// the brokers are too old: see [`OpenError`].
    ///
    /// # Cancel safety
    /// Safe: nothing is changed in the cluster.
    pub async fn open(settings: Settings) -> Result<Self, OpenError> {
        settings.check()?;
        let brokers = settings.address()?.brokers;
        let (client, within) = (settings.client()?, settings.connect_timeout.0);
        let at = brokers.clone();
        let reached =
            tokio::task::spawn_blocking(move || cluster::probe(&client, within, &at)).await;
        let id = reached.map_err(|error| OpenError::Failed {
            brokers: brokers.clone(),
            source: error.into(),
        })??;
        let cluster = Arc::new(Cluster::new(settings)?);
        // Who may not look at the brokers' settings may still use them.
        let entries =
            cluster.configuration(&ResourceSpecifier::Broker(id)).await.unwrap_or_default();
        check_version(&brokers, &entries)?;
        let durability = durability(&cluster.settings, &entries);
        let publisher = Publisher::new(Arc::clone(&cluster))?;
        Ok(Self(Arc::new(Inner { cluster, publisher, durability })))
    }
}

/// What a confirmed message survives, by the settings that new topics get: Kafka confirms when it is
/// in the memories of the replicas that are in sync, and leaves writing to the operating system.
fn durability(settings: &Settings, entries: &[ConfigEntry]) -> Durability {
    let replication = settings.replication.map(u64::from);
    let replication = replication.or_else(|| number(entries, "default.replication.factor"));
    let in_sync = settings.in_sync_replicas_min.map(u64::from);
    let in_sync = in_sync.or_else(|| number(entries, "min.insync.replicas"));
    match (replication, in_sync) {
        (Some(replication), Some(in_sync)) if in_sync >= 2 && in_sync * 2 > replication => {
            Durability::Quorum
        }
        _ => Durability::PageCache,
    }
}

impl Broker for KafkaBroker {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: self.0.durability,
            ordered: true,
            holds_keys: true,
            retry_delay_max: RETRY_DELAY_MAX,
            publish_delay_max: Duration::ZERO,
            dead_letters: false,
            counts_attempts: true,
            answers: true,
            replays: true,
            message_bytes_max: self.0.cluster.settings.message_max.0,
        }
    }

    async fn declare(&self, topology: &Topology) -> Result<(), SubscribeError> {
        topology::declare(&self.0.cluster, topology).await
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<Receipt, PublishError>> {
        self.0.publisher.publish(batch).await
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Box<dyn Source>, SubscribeError> {
        let cluster = Arc::clone(&self.0.cluster);
        let group = subscription.group.clone();
        let joined =
            tokio::task::spawn_blocking(move || source::join(&cluster, &subscription)).await;
        match joined {
            Ok(joined) => Ok(Box::new(joined?.joined(&group).await?)),
            Err(error) => Err(SubscribeError {
                context: format!("group {group} was not joined"),
                transient: true,
                source: Some(error.into()),
            }),
        }
    }

    async fn inbox(&self) -> Result<Box<dyn Inbox>, SubscribeError> {
        inbox::open(&self.0.cluster).await
    }

    async fn answer(&self, address: &str, message: Message) -> Result<(), PublishError> {
        inbox::answer(&self.0.publisher, address, &message).await
    }

    fn operate(&self) -> Option<Arc<dyn Operate>> {
        Some(Arc::new(Operator(Arc::clone(&self.0.cluster))))
    }
}

impl fmt::Debug for KafkaBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaBroker")
            .field("settings", &self.0.cluster.settings)
            .field("durability", &self.0.durability)
            .finish_non_exhaustive()
    }
}
