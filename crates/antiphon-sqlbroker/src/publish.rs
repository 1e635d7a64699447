//! Publishing: rows at the end of the logs, or among the delayed until they are due.

use std::sync::Arc;

use antiphon_core::Timestamp;
use antiphon_messaging::{
    LANES, Message, PublishError, PublishErrorKind, Receipt, Sent, lane_of, row as columns,
};

use crate::change::{Change, Failure, Outcome, Row};
use crate::core::{Core, PUBLISHING_MAX};
use crate::log::Log;

/// The largest message that is taken, in bytes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Publishes a batch in one transaction.
pub(crate) async fn publish<L: Log>(
    core: &Arc<Core<L>>,
    batch: Vec<Message>,
) -> Vec<Result<Receipt, PublishError>> {
    let now = core.now();
    let mut answers: Vec<Result<Receipt, PublishError>> = Vec::with_capacity(batch.len());
    let mut rows = Vec::with_capacity(batch.len());
    let mut topics: Vec<(String, i64)> = Vec::new();
    for message in batch {
        let topic = match topics.iter().find(|(name, _)| *name == message.topic) {
            Some((_, id)) => Ok(*id),
            None => resolve(core, &message.topic).await.inspect(|id| {
                topics.push((message.topic.clone(), *id));
            }),
        };
        answers.push(match topic {
            Err(error) => Err(error),
            Ok(_) if message.size() > MESSAGE_BYTES_MAX => {
                Err(refusal(message.topic, PublishErrorKind::TooLarge))
            }
            Ok(topic) => {
                rows.push(row(topic, message, now));
                Ok(Receipt)
            }
        });
    }
    if rows.is_empty() {
        return answers;
    }
    let mut topics_written = rows.iter().map(|row| row.topic);
    let written: Vec<Option<i64>> = answers
        .iter()
        .map(|answer| if answer.is_ok() { topics_written.next() } else { None })
        .collect();
    if let Err(failure) = write(core, rows).await {
        for (answer, topic) in answers.iter_mut().zip(written) {
            if let Some(topic) = topic {
                let name = topics.iter().find(|(_, id)| *id == topic).map(|(name, _)| &**name);
                *answer = Err(unwritten(name.unwrap_or_default(), &failure));
            }
        }
    }
    answers
}

async fn resolve<L: Log>(core: &Core<L>, topic: &str) -> Result<i64, PublishError> {
    match core.topic(topic).await {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(refusal(topic.to_owned(), PublishErrorKind::Unroutable)),
        Err(failure) => Err(PublishError {
            source: Some(failure.into()),
            ..refusal(topic.to_owned(), PublishErrorKind::Disconnected)
        }),
    }
}

fn refusal(topic: String, kind: PublishErrorKind) -> PublishError {
    PublishError { topic, kind, sent: Sent::No, source: None }
}

fn row(topic: i64, message: Message, now: Timestamp) -> Row {
    Row {
        topic,
        lane: lane(&message),
        due: message.not_before.filter(|due| *due > now),
        id: *message.id.as_bytes(),
        head: columns::encode_head(&message),
        kind: message.kind,
        body: message.body,
    }
}

/// The lane of a message: that of its key, or, without a key, one that its id picks.
#[must_use]
pub fn lane(message: &Message) -> u32 {
    if message.key.is_empty() {
        u32::from(message.id.as_bytes()[15]) % LANES
    } else {
        lane_of(&message.key)
    }
}

async fn write<L: Log>(core: &Arc<Core<L>>, rows: Vec<Row>) -> Result<(), Failure> {
    let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
    // A batch larger than all the room there is would wait for ever.
    let permits = count.min(PUBLISHING_MAX);
    let room = core.room.acquire_many(permits).await;
    let _room = room.map_err(|closed| Failure::NotMade(closed.to_string()))?;
    let delayed = rows.iter().any(|row| row.due.is_some());
    let told = Arc::downgrade(core);
    let answer = core.write(Change::Publish(rows), move |outcome| {
        if let (Ok(Outcome::Published(topics)), Some(core)) = (outcome, told.upgrade()) {
            core.published(topics);
            if delayed {
                core.keep_house();
            }
        }
    });
    answer.get().await.map(drop)
}

fn unwritten(topic: &str, failure: &Failure) -> PublishError {
    let sent = match failure {
        Failure::NotMade(_) => Sent::No,
        Failure::Unknown(_) => Sent::Maybe,
    };
    PublishError {
        topic: topic.to_owned(),
        kind: PublishErrorKind::Disconnected,
        sent,
        source: Some(failure.clone().into()),
    }
}
