//! Answers to this process.
//!
//! All answers travel through one topic, which keeps them for minutes. An inbox reads one partition
//! of it from its end, without a group, and takes what is addressed to it: the record's key is the
//! inbox, and the address names the partition.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::BoxFuture;
use antiphon_messaging::{Inbox, Message, PublishError, PublishErrorKind, SubscribeError};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message as _, Offset, TopicPartitionList};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::cluster::{ASK, Cluster};
use crate::context::Asking;
use crate::error::{refusal, subscribe_error};
use crate::names::ANSWERS;
use crate::publish::{Addressed, Publisher};
use crate::record;
use crate::topology;

/// How many partitions the topic gets if it does not exist.
const PARTITIONS: i32 = 8;
/// How it differs from others: an answer that nobody took for ten minutes is of no use.
const CONFIGURATION: [(&str, &str); 2] = [("retention.ms", "600000"), ("segment.ms", "600000")];

/// See the module.
struct KafkaInbox {
    address: String,
    id: String,
    /// `None` only while it is dropped.
    consumer: Option<BaseConsumer<Asking>>,
    /// Rung when the consumer has something.
    bell: Arc<Notify>,
}

/// Opens an address.
pub(crate) async fn open(cluster: &Arc<Cluster>) -> Result<Box<dyn Inbox>, SubscribeError> {
    topology::declare_topic(cluster, ANSWERS, PARTITIONS, &CONFIGURATION).await?;
    let failed = |error| subscribe_error("no inbox could be opened", error);
    let opened = cluster.ask(move |cluster| {
        let partitions = cluster.partitions(ANSWERS)?.unwrap_or(1).max(1);
        let partition = fastrand::i32(0..partitions);
        let mut consumer: BaseConsumer<Asking> =
            cluster.consumer(ANSWERS)?.create_with_context(Asking::default())?;
        // From here on: what is sent once the address is known lies behind it.
        let (_, end) =
            topology::until_settled(|| consumer.fetch_watermarks(ANSWERS, partition, ASK))?;
        let mut begin = TopicPartitionList::new();
        begin.add_partition_offset(ANSWERS, partition, Offset::Offset(end))?;
        let bell = Arc::new(Notify::new());
        let rung = Arc::clone(&bell);
        consumer.set_nonempty_callback(move || rung.notify_one());
        consumer.assign(&begin)?;
        let id = Uuid::new_v4().simple().to_string();
        let address = format!("{partition}/{id}");
        Ok(KafkaInbox { address, id, consumer: Some(consumer), bell })
    });
    Ok(Box::new(opened.await.map_err(failed)?))
}

/// Sends an answer.
pub(crate) async fn answer(
    publisher: &Publisher,
    address: &str,
    message: &Message,
) -> Result<(), PublishError> {
    let parsed = address.split_once('/').and_then(|(partition, id)| {
        Some((partition.parse::<i32>().ok()?, Uuid::from_str(id).ok().map(|_| id)?))
    });
    let Some((partition, id)) = parsed.filter(|(partition, _)| *partition >= 0) else {
        let why = "this is not the address of an inbox of a Kafka broker";
        return Err(refusal(address, PublishErrorKind::Rejected, why));
    };
    let addressed = Addressed { topic: ANSWERS, partition: Some(partition), key: id, message };
    let answers = publisher.send(&[addressed]).await;
    answers.into_iter().try_for_each(|answer| answer.map(|_receipt| ()))
}

impl KafkaInbox {
    /// What has come in; `Err` when nothing will come any more.
    fn look(&self) -> Result<Option<Message>, KafkaError> {
        let Some(consumer) = &self.consumer else { return Ok(None) };
        loop {
            let told = consumer.context().told.count();
            match consumer.poll(Duration::ZERO) {
                Some(Ok(record)) if record.key() == Some(self.id.as_bytes()) => {
                    return Ok(Some(record::answer(ANSWERS, &record)));
                }
                // Somebody else's.
                Some(Ok(_)) => {}
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => return Err(error),
                // Brokers that are away come back.
                Some(Err(error)) => tracing::debug!(%error, "kafka: trouble with an inbox"),
                // Something else than a record: there may be more behind it.
                None if consumer.context().told.count() != told => {}
                None => return Ok(None),
            }
        }
    }
}

impl Inbox for KafkaInbox {
    fn address(&self) -> &str {
        &self.address
    }

    fn receive(&mut self) -> BoxFuture<'_, Option<Message>> {
        Box::pin(async move {
            loop {
                match self.look() {
                    Ok(Some(message)) => return Some(message),
                    Ok(None) => self.bell.notified().await,
                    Err(error) => {
                        tracing::warn!(%error, "kafka: an inbox has ended");
                        return None;
                    }
                }
            }
        })
    }
}

impl Drop for KafkaInbox {
    fn drop(&mut self) {
        // Its end waits for its threads, which a task must not.
        if let Some(consumer) = self.consumer.take() {
            std::thread::spawn(move || drop(consumer));
        }
    }
}
