//! What is asked of the cluster as a whole: topics, their limits, the brokers.
//!
//! librdkafka answers such questions by blocking, so they are put on threads that may block.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::BoxError;
use parking_lot::RwLock;
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigEntry, ConfigResourceResult, ResourceSpecifier,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use tokio::time::Instant;

use crate::context::{Asking, Trouble, Troubles};
use crate::error::{OpenError, is_unauthorized, is_unknown_topic};
use crate::settings::Settings;

/// How long one question may take.
pub(crate) const ASK: Duration = Duration::from_secs(10);
/// How long an attempt to reach the cluster takes before it is looked why.
const PROBE: Duration = Duration::from_millis(250);
/// A setting of brokers that has existed since Kafka 2.4: what we need of the group protocol, of
/// creating topics and of errors per record is as old.
const SINCE_2_4: &str = "replica.selector.class";

/// What is known of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) partitions: i32,
    /// The largest batch of records that it takes, in bytes.
    pub(crate) bytes_max: usize,
}

/// The cluster, for questions.
pub(crate) struct Cluster {
    pub(crate) settings: Settings,
    pub(crate) brokers: String,
    admin: AdminClient<Asking>,
    topics: RwLock<HashMap<String, Facts>>,
}

impl Cluster {
    pub(crate) fn new(settings: Settings) -> Result<Self, OpenError> {
        let brokers = settings.address()?.brokers;
        let admin = settings
            .client()?
            .create_with_context(Asking::default())
            .map_err(|error| refused_settings(&error))?;
        Ok(Self { settings, brokers, admin, topics: RwLock::default() })
    }

    pub(crate) fn admin(&self) -> &AdminClient<Asking> {
        &self.admin
    }

    /// What a consumer of `group` is told.
    pub(crate) fn consumer(&self, group: &str) -> Result<ClientConfig, KafkaError> {
        // The settings were looked at when the cluster was opened.
        self.settings.consumer(group).map_err(|error| KafkaError::ClientCreation(error.to_string()))
    }

    /// Asks on a thread that may block.
    pub(crate) async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        question: impl FnOnce(&Self) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, KafkaError> {
        let cluster = Arc::clone(self);
        match tokio::task::spawn_blocking(move || question(&cluster)).await {
            Ok(answer) => answer,
            // The runtime ends, or the question panicked.
            Err(_) => Err(KafkaError::Canceled),
        }
    }

    /// How many partitions the topic has; `None` if there is no such topic.
    pub(crate) fn partitions(&self, topic: &str) -> Result<Option<i32>, KafkaError> {
        let metadata = self.admin.inner().fetch_metadata(Some(topic), ASK)?;
        partitions_of(&metadata, topic)
    }

    /// What is known of the topic, asked once; `None` if there is no such topic.
    pub(crate) async fn facts(self: &Arc<Self>, topic: &str) -> Result<Option<Facts>, KafkaError> {
        if let Some(facts) = self.topics.read().get(topic) {
            return Ok(Some(*facts));
        }
        let name = topic.to_owned();
        let Some(partitions) = self.ask(move |cluster| cluster.partitions(&name)).await? else {
            return Ok(None);
        };
        let entries =
            self.configuration(&ResourceSpecifier::Topic(topic)).await.unwrap_or_default();
        let bytes_max = number(&entries, "max.message.bytes").unwrap_or(u64::MAX);
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let facts = Facts { partitions, bytes_max: bytes_max.min(self.settings.wire_bytes_max()) };
        self.topics.write().insert(topic.to_owned(), facts);
        Ok(Some(facts))
    }

    /// Asks anew what is known of the topic, next time.
    pub(crate) fn forget(&self, topic: &str) {
        self.topics.write().remove(topic);
    }

    /// The settings of a topic or broker.
    pub(crate) async fn configuration(
        &self,
        of: &ResourceSpecifier<'_>,
    ) -> Result<Vec<ConfigEntry>, KafkaError> {
        let answers = self.configurations(std::slice::from_ref(of)).await?;
        match answers.into_iter().next() {
            Some(Ok(resource)) => Ok(resource.entries),
            Some(Err(code)) => Err(KafkaError::AdminOp(code)),
            None => Err(KafkaError::AdminOp(Code::NoEnt)),
        }
    }

    /// The settings of topics or brokers.
    pub(crate) async fn configurations(
        &self,
        of: &[ResourceSpecifier<'_>],
    ) -> Result<Vec<ConfigResourceResult>, KafkaError> {
        let options = AdminOptions::new().request_timeout(Some(ASK));
        self.admin.describe_configs(of, &options).await
    }
}

/// The value of a setting that is a number.
pub(crate) fn number(entries: &[ConfigEntry], name: &str) -> Option<u64> {
    text(entries, name)?.parse().ok()
}

/// The value of a setting.
pub(crate) fn text<'a>(entries: &'a [ConfigEntry], name: &str) -> Option<&'a str> {
    entries.iter().find(|entry| entry.name == name)?.value.as_deref()
}

/// How many partitions the topic has by this answer; `None` if there is no such topic.
fn partitions_of(metadata: &Metadata, topic: &str) -> Result<Option<i32>, KafkaError> {
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(None);
    };
    match found.error().map(Code::from) {
        Some(code) if is_unknown_topic(code) => Ok(None),
        Some(code) if code != Code::LeaderNotAvailable => Err(KafkaError::MetadataFetch(code)),
        _ => Ok(Some(i32::try_from(found.partitions().len()).unwrap_or(i32::MAX))),
    }
}

/// Whether every one of `partitions` partitions has a leader, so that records can be sent.
pub(crate) fn is_ready(metadata: &Metadata, topic: &str, partitions: i32) -> bool {
    metadata.topics().iter().any(|found| {
        found.name() == topic
            && found.error().is_none()
            && i32::try_from(found.partitions().len()).is_ok_and(|count| count >= partitions)
            && found.partitions().iter().all(|partition| partition.leader() >= 0)
    })
}

/// librdkafka does not take the settings.
pub(crate) fn refused_settings(error: &KafkaError) -> OpenError {
    let problem = match error {
        KafkaError::ClientConfig(_, why, name, value) if !name.contains("password") => {
            format!("librdkafka refuses {name} = {value}: {why}")
        }
        other => format!("librdkafka refuses them: {other}"),
    };
    OpenError::Settings { problem }
}

/// Reaches the cluster, or finds out why not; yields the id of a broker. Blocks.
pub(crate) fn probe(
    config: &ClientConfig,
    within: Duration,
    brokers: &str,
) -> Result<i32, OpenError> {
    let troubles = Troubles::default();
    let client: BaseConsumer<Asking> = config
        .create_with_context(Asking { troubles: troubles.clone(), ..Asking::default() })
        .map_err(|error| refused_settings(&error))?;
    let give_up = Instant::now() + within;
    loop {
        let answer = client.fetch_metadata(None, PROBE);
        // Troubles are told when somebody polls.
        let mut told = None;
        while told != Some(client.context().told.count()) {
            told = Some(client.context().told.count());
            let _ = client.poll(Duration::ZERO);
        }
        match answer {
            Ok(metadata) if !metadata.brokers().is_empty() => {
                return Ok(metadata.brokers()[0].id());
            }
            Ok(_) => {}
            Err(error) => {
                let latest = troubles.latest();
                let hopeless = latest.as_ref().is_some_and(|trouble| is_hopeless(trouble.code));
                if hopeless || Instant::now() >= give_up {
                    return Err(unreachable(brokers, latest, error));
                }
            }
        }
    }
}

/// Whether trying again does not help.
fn is_hopeless(code: Code) -> bool {
    is_unauthorized(code) || code == Code::SSL
}

fn unreachable(brokers: &str, trouble: Option<Trouble>, error: KafkaError) -> OpenError {
    let brokers = brokers.to_owned();
    match trouble {
        Some(Trouble { code, text }) if is_unauthorized(code) => {
            OpenError::Unauthorized { brokers, problem: text }
        }
        Some(Trouble { code: Code::SSL, text }) => OpenError::Tls { brokers, problem: text },
        Some(trouble) => OpenError::Unreachable { brokers, problem: trouble.text },
        None => match error.rdkafka_error_code() {
            Some(Code::BrokerTransportFailure | Code::OperationTimedOut | Code::AllBrokersDown) => {
                OpenError::Unreachable { brokers, problem: error.to_string() }
            }
            _ => OpenError::Failed { brokers, source: BoxError::from(error) },
        },
    }
}

/// Whether the brokers are new enough. Who may not look at their settings is believed.
pub(crate) fn check_version(brokers: &str, entries: &[ConfigEntry]) -> Result<(), OpenError> {
    if entries.is_empty() || entries.iter().any(|entry| entry.name == SINCE_2_4) {
        return Ok(());
    }
    let problem = format!("they have no setting `{SINCE_2_4}`");
    Err(OpenError::TooOld { brokers: brokers.to_owned(), problem })
}
