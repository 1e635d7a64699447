//! Publishing: rows at the end of the logs, or among the delayed until they are due.

use std::sync::Arc;

use antiphon_core::Timestamp;
use antiphon_messaging::{LANES, Message, PublishError, PublishErrorKind, Receipt, Sent, lane_of};
use bytes::Bytes;
use rusqlite::{Connection, Result, params};

use super::core::{Core, PUBLISHING_MAX};
use super::writer::Failure;
use antiphon_messaging::row;

/// The largest message that is taken, in bytes.
pub(super) const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A message as it is written.
struct Row {
    topic: i64,
    lane: u32,
    due: Option<Timestamp>,
    id: [u8; 16],
    kind: String,
    head: Vec<u8>,
    body: Bytes,
}

/// Publishes a batch in one transaction.
pub(super) async fn publish(
    core: &Arc<Core>,
    batch: Vec<Message>,
) -> Vec<std::result::Result<Receipt, PublishError>> {
    let now = core.now();
    let mut answers: Vec<std::result::Result<Receipt, PublishError>> =
        Vec::with_capacity(batch.len());
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
    if let Err(failure) = write(core, rows, topics.iter().map(|(_, id)| *id).collect()).await {
        for (answer, topic) in answers.iter_mut().zip(written) {
            if let Some(topic) = topic {
                let name = topics.iter().find(|(_, id)| *id == topic).map(|(name, _)| &**name);
                *answer = Err(unwritten(name.unwrap_or_default(), &failure));
            }
        }
    }
    answers
}

async fn resolve(core: &Core, topic: &str) -> std::result::Result<i64, PublishError> {
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
        head: row::encode_head(&message),
        kind: message.kind,
        body: message.body,
    }
}

/// The lane of a message: that of its key, or, without a key, one that its id picks.
pub(super) fn lane(message: &Message) -> u32 {
    if message.key.is_empty() {
        u32::from(message.id.as_bytes()[15]) % LANES
    } else {
        lane_of(&message.key)
    }
}

async fn write(
    core: &Arc<Core>,
    rows: Vec<Row>,
    topics: Vec<i64>,
) -> std::result::Result<(), Failure> {
    let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
    // A batch larger than all the room there is would wait for ever.
    let permits = count.min(PUBLISHING_MAX);
    let _room = core
        .room
        .acquire_many(permits)
        .await
        .map_err(|closed| Failure::RolledBack(closed.to_string()))?;
    let delayed = rows.iter().any(|row| row.due.is_some());
    let told = Arc::downgrade(core);
    let answer = core.write(
        move |connection| insert(connection, &rows),
        move |outcome| {
            if let (Ok(()), Some(core)) = (outcome, told.upgrade()) {
                core.published(&topics);
                if delayed {
                    core.keep_house();
                }
            }
        },
    );
    answer.get().await
}

fn insert(connection: &Connection, rows: &[Row]) -> Result<()> {
    // One statement per run of rows of one topic.
    for run in rows.chunk_by(|one, next| one.topic == next.topic) {
        let Some(Row { topic, .. }) = run.first() else { continue };
        let mut log = connection.prepare_cached(&format!(
            "INSERT INTO log_{topic} (lane, id, kind, head, body) VALUES (?, ?, ?, ?, ?)"
        ))?;
        for row in run {
            let Row { lane, id, kind, head, body, .. } = row;
            match row.due {
                None => log.execute(params![lane, id, kind, head, body.as_ref()])?,
                Some(due) => connection
                    .prepare_cached(
                        "INSERT INTO delayed (due, topic, lane, id, kind, head, body)
                         VALUES (?, ?, ?, ?, ?, ?, ?)",
                    )?
                    .execute(params![
                        due.as_micros(),
                        topic,
                        lane,
                        id,
                        kind,
                        head,
                        body.as_ref()
                    ])?,
            };
        }
    }
    Ok(())
}

fn unwritten(topic: &str, failure: &Failure) -> PublishError {
    let sent = match failure {
        Failure::RolledBack(_) => Sent::No,
        Failure::Unknown(_) => Sent::Maybe,
    };
    PublishError {
        topic: topic.to_owned(),
        kind: PublishErrorKind::Disconnected,
        sent,
        source: Some(failure.clone().into()),
    }
}
