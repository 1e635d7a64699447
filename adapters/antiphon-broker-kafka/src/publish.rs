//! Publishing: one producer for all, one wait per batch.
//!
//! The producer is idempotent and never gives a record up by itself, so within its life the records
//! of a partition are written in the order in which they were queued, and none is left out. When a
//! record fails for good, or the cluster takes too long to confirm, the producer as a whole ends:
//! what it has not confirmed is unknown, and nothing that was queued later can overtake. The next
//! batch gets a new one.

use std::sync::Arc;
use std::time::Duration;

use antiphon_messaging::{Message, PublishError, PublishErrorKind, Receipt, Sent};
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::BaseRecord;
use tokio::time::{Instant, timeout, timeout_at};

use crate::cluster::{Cluster, refused_settings};
use crate::error::{OpenError, is_unauthorized, publish_error, refusal};
use crate::producer::{Batch, Outcome, Producer, Ticket};
use crate::record;

/// How long a full queue is left alone before it is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How long an ended producer takes at most to say what became of its records.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Publisher {
    cluster: Arc<Cluster>,
    config: ClientConfig,
    current: Mutex<Arc<Producer>>,
    publish_wait: Duration,
    publish_timeout: Duration,
}

impl Publisher {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Result<Self, OpenError> {
        let settings = &cluster.settings;
        let config = settings.producer()?;
        let publish_wait = settings.publish_wait.0;
        let publish_timeout = settings.publish_timeout.0;
        let first = Producer::start(&config).map_err(|error| refused_settings(&error))?;
        let current = Mutex::new(Arc::new(first));
        Ok(Self { cluster, config, current, publish_wait, publish_timeout })
    }

    /// The producer that lives; a new one if the last has ended.
    fn producer(&self) -> Result<Arc<Producer>, KafkaError> {
        let mut current = self.current.lock();
        if current.has_ended() {
            current.purge();
            *current = Arc::new(Producer::start(&self.config)?);
        }
        Ok(Arc::clone(&current))
    }

    /// Ends a producer: what it has not confirmed comes back, and others get a new one.
    fn end(&self, ended: &Arc<Producer>) {
        let mut current = self.current.lock();
        if Arc::ptr_eq(&current, ended) {
            match Producer::start(&self.config) {
                Ok(next) => *current = Arc::new(next),
                Err(error) => tracing::error!(%error, "kafka: no new producer could be made"),
            }
        }
        drop(current);
        ended.purge();
    }

    /// Sends messages to their topics under their keys, and answers for each in the order of the
    /// input.
    pub(crate) async fn publish(
        &self,
        messages: Vec<Message>,
    ) -> Vec<Result<Receipt, PublishError>> {
        let addressed: Vec<Addressed<'_>> = messages
            .iter()
            .map(|message| Addressed {
                topic: &message.topic,
                partition: None,
                key: &message.key,
                message,
            })
            .collect();
        self.send(&addressed).await
    }

    /// Sends what is addressed, and answers for each in the order of the input.
    pub(crate) async fn send(
        &self,
        messages: &[Addressed<'_>],
    ) -> Vec<Result<Receipt, PublishError>> {
        let producer = match self.producer() {
            Ok(producer) => producer,
            Err(error) => return refuse_all(messages, &error.to_string()).collect(),
        };
        let batch = Arc::new(Batch::new(messages.len()));
        let mut refusals = Vec::with_capacity(messages.len());
        let mut limit: Option<(&str, Result<usize, Refusal>)> = None;
        for (index, addressed) in messages.iter().enumerate() {
            // Messages for one topic often come in a row.
            if limit.as_ref().is_none_or(|(topic, _)| *topic != addressed.topic) {
                limit = Some((addressed.topic, self.limit(addressed.topic).await));
            }
            let queued = match &limit {
                Some((_, Ok(bytes_max))) => {
                    self.queue(&producer, &batch, index, addressed, *bytes_max).await
                }
                Some((topic, Err(refusal))) => Err(Unqueued::This(refusal.error(topic))),
                None => Ok(()),
            };
            match queued {
                Ok(()) => refusals.push(None),
                Err(Unqueued::This(error)) => {
                    batch.withdraw(1);
                    refusals.push(Some(error));
                }
                Err(Unqueued::AndAllAfter(error)) => {
                    let rest = &messages[index + 1..];
                    batch.withdraw(1 + rest.len());
                    refusals.push(Some(error));
                    // Messages of one key must not overtake.
                    let full = "an earlier message found no room";
                    refusals.extend(refuse_all(rest, full).map(Result::err));
                    break;
                }
            }
        }
        self.wait(&batch, &producer).await;
        let answers = batch.take().into_iter().zip(refusals).zip(messages);
        answers
            .map(|((outcome, refusal), addressed)| match refusal {
                Some(error) => Err(error),
                None => self.result(addressed.topic, outcome),
            })
            .collect()
    }

    /// Queues one message; waits for room if there is none.
    async fn queue(
        &self,
        producer: &Producer,
        batch: &Arc<Batch>,
        index: usize,
        addressed: &Addressed<'_>,
        bytes_max: usize,
    ) -> Result<(), Unqueued> {
        let Addressed { topic, partition, key, message } = addressed;
        let (headers, bytes) = record::headers(message);
        let size = message.size();
        if size > self.cluster.settings.message_max.0 || bytes > bytes_max {
            let why = format!("{size} bytes; {bytes} as a record, and the topic takes {bytes_max}");
            return Err(Unqueued::This(refusal(topic, PublishErrorKind::TooLarge, why)));
        }
        let ticket =
            Ticket { batch: Arc::clone(batch), index: u32::try_from(index).unwrap_or(u32::MAX) };
        let mut record = BaseRecord::with_opaque_to(topic, Box::new(ticket))
            .payload(&message.body[..])
            .headers(headers);
        if !key.is_empty() {
            record = record.key(*key);
        }
        if let Some(partition) = partition {
            record = record.partition(*partition);
        }
        let mut full_since = None;
        loop {
            let (error, back) = match producer.queue(record) {
                Ok(()) => return Ok(()),
                Err(refused) => *refused,
            };
            let full = error.rdkafka_error_code() == Some(Code::QueueFull);
            let since = *full_since.get_or_insert_with(Instant::now);
            if !full || since.elapsed() >= self.publish_wait {
                let kind = if full {
                    PublishErrorKind::Overloaded
                } else {
                    PublishErrorKind::Disconnected
                };
                return Err(Unqueued::AndAllAfter(refusal(topic, kind, error)));
            }
            record = back;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The largest record that the topic takes, in bytes.
    async fn limit(&self, topic: &str) -> Result<usize, Refusal> {
        match self.cluster.facts(topic).await {
            Ok(Some(facts)) => Ok(facts.bytes_max),
            Ok(None) => Err(Refusal {
                kind: PublishErrorKind::Unroutable,
                why: "there is no such topic; declare it before publishing".to_owned(),
            }),
            Err(error) => Err(Refusal {
                kind: if error.rdkafka_error_code().is_some_and(is_unauthorized) {
                    PublishErrorKind::Unauthorized
                } else {
                    PublishErrorKind::Disconnected
                },
                why: error.to_string(),
            }),
        }
    }

    /// Waits until all that was queued is answered, or has to be given up.
    async fn wait(&self, batch: &Batch, producer: &Arc<Producer>) {
        let give_up = Instant::now() + self.publish_timeout;
        while !batch.is_done() {
            let rung = timeout_at(give_up, batch.bell.notified()).await.is_ok();
            if batch.is_done() {
                return;
            }
            if !rung || producer.has_ended() {
                self.end(producer);
                let last = async {
                    while !batch.is_done() {
                        batch.bell.notified().await;
                    }
                };
                let _ = timeout(LAST_WORDS, last).await;
                return;
            }
        }
    }

    fn result(&self, topic: &str, outcome: Outcome) -> Result<Receipt, PublishError> {
        match outcome {
            Outcome::Confirmed => Ok(Receipt),
            Outcome::Failed(error) => {
                let code = error.rdkafka_error_code();
                if !matches!(code, Some(Code::PurgeQueue | Code::PurgeInflight)) {
                    // Something about the topic is not as we know it.
                    self.cluster.forget(topic);
                }
                Err(publish_error(topic, error))
            }
            Outcome::Pending => Err(PublishError {
                topic: topic.to_owned(),
                kind: PublishErrorKind::Disconnected,
                sent: Sent::Maybe,
                source: Some("the brokers have not confirmed it in time".into()),
            }),
        }
    }
}

/// A message, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addressed<'a> {
    pub(crate) topic: &'a str,
    /// Where in the topic, if not where the key says.
    pub(crate) partition: Option<i32>,
    /// The key of the record.
    pub(crate) key: &'a str,
    pub(crate) message: &'a Message,
}

/// Why a message was not queued.
enum Unqueued {
    /// This message is not taken; the next one may be.
    This(PublishError),
    /// Neither this one nor any that comes after it.
    AndAllAfter(PublishError),
}

/// Why nothing goes to a topic.
struct Refusal {
    kind: PublishErrorKind,
    why: String,
}

impl Refusal {
    fn error(&self, topic: &str) -> PublishError {
        refusal(topic, self.kind, self.why.clone())
    }
}

fn refuse_all<'a>(
    messages: &'a [Addressed<'_>],
    why: &'a str,
) -> impl Iterator<Item = Result<Receipt, PublishError>> + 'a {
    let kind = PublishErrorKind::Overloaded;
    messages.iter().map(move |addressed| Err(refusal(addressed.topic, kind, why)))
}
