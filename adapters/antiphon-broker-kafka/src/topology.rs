//! Topics and groups are made, and looked at when they exist.
//!
//! A topic that exists is used as it is: its partitions, replicas and retention are the operator's.
//! Only one that cannot take the requests that we send is refused. A group exists when it has
//! written down how far it is; a new one gets that from us, so that it misses nothing which is
//! published before its first member comes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use antiphon_messaging::{Group, Start, SubscribeError, Topology};
use rdkafka::Offset;
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use tokio::time::Instant;

use crate::cluster::{ASK, Cluster, is_ready};
use crate::context::Asking;
use crate::error::{impossible, subscribe_error};
use crate::names;
use crate::offsets::{self, Place};

/// How often it is looked whether a new topic can be used.
const READY_POLL: Duration = Duration::from_millis(20);

/// How long brokers take at most to agree on something new.
const SETTLE: Duration = Duration::from_secs(20);

/// Makes sure that topics and groups exist.
pub(crate) async fn declare(
    cluster: &Arc<Cluster>,
    topology: &Topology,
) -> Result<(), SubscribeError> {
    let mut topics: BTreeSet<&str> = topology.topics.iter().map(String::as_str).collect();
    for group in &topology.groups {
        names::check_group(&group.name).map_err(impossible)?;
        topics.extend(group.topics.iter().map(String::as_str));
    }
    for topic in &topics {
        names::check_topic(topic).map_err(impossible)?;
        let partitions = cluster.settings.partitions.into();
        declare_topic(cluster, topic, partitions, &[]).await?;
    }
    for group in &topology.groups {
        let (asked, wanted) = (Arc::clone(cluster), group.clone());
        let declared = tokio::task::spawn_blocking(move || declare_group(&asked, &wanted)).await;
        declared.map_err(|error| SubscribeError {
            context: format!("group {} was not declared", group.name),
            transient: true,
            source: Some(error.into()),
        })??;
    }
    Ok(())
}

/// Makes sure that a topic exists and can be used.
pub(crate) async fn declare_topic(
    cluster: &Arc<Cluster>,
    topic: &str,
    partitions: i32,
    configuration: &[(&str, &str)],
) -> Result<(), SubscribeError> {
    let failed = |error| subscribe_error(format!("topic {topic} was not declared"), error);
    // It may have been deleted since it was looked at.
    cluster.forget(topic);
    if cluster.facts(topic).await.map_err(failed)?.is_none() {
        create(cluster, topic, partitions, configuration).await?;
        let name = topic.to_owned();
        cluster
            .ask(move |cluster| wait_until_ready(cluster, &name, partitions))
            .await
            .map_err(failed)?;
    }
    let Some(facts) = cluster.facts(topic).await.map_err(failed)? else {
        return Err(failed(KafkaError::AdminOp(Code::UnknownTopicOrPartition)));
    };
    let batch = cluster.settings.batch_max.0;
    if facts.bytes_max < batch {
        return Err(impossible(format!(
            "topic {topic} takes at most {} bytes at a time (max.message.bytes), and batch_max \
             is {batch}; raise the one or lower the other",
            facts.bytes_max
        )));
    }
    if facts.partitions != partitions {
        tracing::debug!(topic, partitions = facts.partitions, "kafka: a topic is used as it is");
    }
    Ok(())
}

async fn create(
    cluster: &Arc<Cluster>,
    topic: &str,
    partitions: i32,
    configuration: &[(&str, &str)],
) -> Result<(), SubscribeError> {
    let settings = &cluster.settings;
    let replication = settings.replication.map_or(-1, i32::from);
    let bytes_max = settings.wire_bytes_max().to_string();
    let in_sync = settings.in_sync_replicas_min.map(|min| min.to_string());
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication))
        .set("max.message.bytes", &bytes_max);
    if let Some(in_sync) = &in_sync {
        new = new.set("min.insync.replicas", in_sync);
    }
    for (name, value) in configuration {
        new = new.set(name, value);
    }
    let options = AdminOptions::new().request_timeout(Some(ASK)).operation_timeout(Some(ASK));
    let context = || format!("topic {topic} was not created");
    let answers = cluster.admin().create_topics([&new], &options).await;
    let answers = answers.map_err(|error| subscribe_error(context(), error))?;
    match answers.into_iter().next() {
        // Somebody else was faster.
        Some(Ok(_) | Err((_, Code::TopicAlreadyExists))) => Ok(()),
        Some(Err((
            _,
            code @ (Code::InvalidReplicationFactor
            | Code::InvalidTopic
            | Code::InvalidConfig
            | Code::PolicyViolation
            | Code::InvalidPartitions),
        ))) => Err(impossible(format!("{}: {code}", context()))),
        Some(Err((_, code))) => {
            Err(subscribe_error(context(), KafkaError::AdminOp(code)).unless_unauthorized(code))
        }
        None => Err(subscribe_error(context(), KafkaError::Canceled)),
    }
}

/// Admin errors carry their code where `KafkaError` does not show it.
trait UnlessUnauthorized {
    fn unless_unauthorized(self, code: Code) -> Self;
}

impl UnlessUnauthorized for SubscribeError {
    fn unless_unauthorized(mut self, code: Code) -> Self {
        self.transient = !crate::error::is_unauthorized(code);
        self
    }
}

fn wait_until_ready(cluster: &Cluster, topic: &str, partitions: i32) -> Result<(), KafkaError> {
    let give_up = Instant::now() + ASK;
    loop {
        let metadata = cluster.admin().inner().fetch_metadata(Some(topic), ASK)?;
        // Somebody else may have made it, with another number.
        if is_ready(&metadata, topic, partitions.min(1)) {
            return Ok(());
        }
        if Instant::now() >= give_up {
            return Err(KafkaError::MetadataFetch(Code::LeaderNotAvailable));
        }
        std::thread::sleep(READY_POLL);
    }
}

/// Makes sure that a group has a place to begin at. Blocks.
fn declare_group(cluster: &Cluster, group: &Group) -> Result<(), SubscribeError> {
    until_settled(|| place_group(cluster, group))
        .map_err(|error| subscribe_error(format!("group {} was not declared", group.name), error))
}

/// Asks again while the brokers have not all heard of a new topic, or look for who keeps the group.
/// Blocks.
pub(crate) fn until_settled<T>(
    mut ask: impl FnMut() -> Result<T, KafkaError>,
) -> Result<T, KafkaError> {
    let give_up = Instant::now() + SETTLE;
    loop {
        match ask() {
            Err(error) if is_unsettled(&error) && Instant::now() < give_up => {
                std::thread::sleep(READY_POLL);
            }
            other => return other,
        }
    }
}

fn is_unsettled(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::UnknownTopicOrPartition
                | Code::UnknownPartition
                // The first group of a cluster waits for the topic that groups are kept in.
                | Code::NotCoordinator
                | Code::CoordinatorNotAvailable
                | Code::CoordinatorLoadInProgress
        )
    )
}

fn place_group(cluster: &Cluster, group: &Group) -> Result<(), KafkaError> {
    let consumer: BaseConsumer<Asking> =
        cluster.consumer(&group.name)?.create_with_context(Asking::default())?;
    let mut topics = Vec::with_capacity(group.topics.len());
    for topic in &group.topics {
        topics.push((topic.as_str(), cluster.partitions(topic)?.unwrap_or(0)));
    }
    let committed = offsets::committed(&consumer, &topics)?;
    // A topic of which the group has something is one that it reads: partitions that were added
    // since belong to its members, who begin them at their first record.
    let knows =
        |topic: &str| committed.iter().any(|place| place.topic == topic && place.offset.is_some());
    let new: Vec<(&str, i32)> = topics.into_iter().filter(|(topic, _)| !knows(topic)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let begins = beginning(&consumer, &new, group.start)?;
    match offsets::begin(&consumer, &begins) {
        // The group has members: somebody else has declared it in between.
        Err(error) if is_alive(&error) => Ok(()),
        other => other,
    }
}

fn beginning(
    consumer: &BaseConsumer<Asking>,
    topics: &[(&str, i32)],
    start: Start,
) -> Result<Vec<Place>, KafkaError> {
    let bound = match start {
        Start::Earliest => Offset::Beginning,
        Start::Latest => Offset::End,
    };
    offsets::bounds(consumer, topics, bound)
}

fn is_alive(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(Code::UnknownMemberId | Code::IllegalGeneration | Code::RebalanceInProgress)
    )
}
