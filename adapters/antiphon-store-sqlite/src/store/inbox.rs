//! The inbox: which messages a consumer has handled, remembered up to the horizon.
//!
//! Ids are UUIDv7 and sort by their time, so the horizon is the smallest id that is remembered, and
//! forgetting is the deletion of a range.

use std::collections::{HashMap, HashSet};

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::Message;
use antiphon_outbox::{HandledCount, InboxEntry, InboxStore, Store, StoreError};
use sqlx::Row;

use super::connection::Connection;
use super::{SqliteStore, commit, json};
use crate::error::store_error;
use antiphon_messaging::row;

/// Entries that are forgotten in one transaction, so that others get their turn in between.
const FORGET_AT_ONCE: u32 = 5_000;

const ENTER: &str = "
INSERT INTO antiphon_inbox (id, consumer)
SELECT unhex(value), ?2 FROM json_each(?1)
 WHERE unhex(value) >= (SELECT value FROM antiphon_value WHERE name = 'horizon')
ON CONFLICT DO NOTHING RETURNING id";

const COUNT: &str = "
INSERT INTO antiphon_handled (consumer, topic, kind, done, duplicates) VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE
   SET done = done + excluded.done, duplicates = duplicates + excluded.duplicates";

impl InboxStore for SqliteStore {
    async fn enter(
        &self,
        connection: &mut Connection,
        consumer: &str,
        messages: &[&Message],
    ) -> Result<Vec<InboxEntry>, StoreError> {
        let timed = messages.iter().filter(|message| message.id.made_at().is_some());
        let ids: Vec<String> = timed.map(|message| hex(message.id)).collect();
        let entered = sqlx::query(ENTER)
            .bind(json::array(ids.iter().map(String::as_str)))
            .bind(consumer)
            .fetch_all(&mut **connection)
            .await
            .map_err(store_error("entering the inbox"))?;
        let mut new: HashSet<MessageId> =
            entered.iter().filter_map(|row| row::decode_id(row.get(0)).ok()).collect();
        let horizon =
            if new.len() == messages.len() { None } else { Some(read_horizon(connection).await?) };
        let mut entries = Vec::with_capacity(messages.len());
        for message in messages {
            let beyond = |horizon| message.id.made_at().is_none() || message.id < horizon;
            entries.push(if new.remove(&message.id) {
                InboxEntry::New
            } else if horizon.is_some_and(beyond) {
                InboxEntry::BeyondHorizon
            } else {
                InboxEntry::Duplicate
            });
        }
        defer_counts(connection, consumer, messages, &entries)?;
        Ok(entries)
    }

    async fn expire(&self, horizon: Timestamp) -> Result<u64, StoreError> {
        let first = first_id(horizon);
        let mut forgotten = 0;
        loop {
            let mut connection = self.begin().await?;
            sqlx::query(
                "UPDATE antiphon_value SET value = ?1 WHERE name = 'horizon' AND value < ?1",
            )
            .bind(first.as_bytes().as_slice())
            .execute(&mut *connection)
            .await
            .map_err(store_error("moving the horizon"))?;
            let removed = sqlx::query(
                "DELETE FROM antiphon_inbox WHERE (id, consumer) IN
                    (SELECT id, consumer FROM antiphon_inbox WHERE id < ? ORDER BY id LIMIT ?)",
            )
            .bind(first.as_bytes().as_slice())
            .bind(FORGET_AT_ONCE)
            .execute(&mut *connection)
            .await
            .map_err(store_error("forgetting inbox entries"))?
            .rows_affected();
            commit(connection, "moving the horizon").await?;
            forgotten += removed;
            if removed < u64::from(FORGET_AT_ONCE) {
                return Ok(forgotten);
            }
        }
    }

    async fn handled(&self) -> Result<Vec<HandledCount>, StoreError> {
        let rows = sqlx::query(
            "SELECT consumer, topic, kind, done, duplicates FROM antiphon_handled
              ORDER BY consumer, topic, kind",
        )
        .fetch_all(self.reader())
        .await
        .map_err(store_error("counting handled messages"))?;
        let count = |value: i64| u64::try_from(value).unwrap_or(0);
        Ok(rows
            .iter()
            .map(|row| HandledCount {
                consumer: row.get(0),
                topic: row.get(1),
                kind: row.get(2),
                done: count(row.get(3)),
                duplicates: count(row.get(4)),
            })
            .collect())
    }
}

async fn read_horizon(connection: &mut Connection) -> Result<MessageId, StoreError> {
    let bytes: Vec<u8> =
        sqlx::query_scalar("SELECT value FROM antiphon_value WHERE name = 'horizon'")
            .fetch_one(&mut **connection)
            .await
            .map_err(store_error("reading the horizon"))?;
    row::decode_id(&bytes)
        .map_err(|error| StoreError::Failed { action: "reading the horizon", source: error.into() })
}

/// Counts what was answered, when the transaction commits.
fn defer_counts(
    connection: &mut Connection,
    consumer: &str,
    messages: &[&Message],
    entries: &[InboxEntry],
) -> Result<(), StoreError> {
    let mut counts: HashMap<(&str, &str), (i64, i64)> = HashMap::new();
    for (message, entry) in messages.iter().zip(entries) {
        let (done, duplicates) = match entry {
            InboxEntry::New => (1, 0),
            InboxEntry::Duplicate => (0, 1),
            InboxEntry::BeyondHorizon => continue,
        };
        let count = counts.entry((&message.topic, &message.kind)).or_default();
        count.0 += done;
        count.1 += duplicates;
    }
    let deferred = connection.deferred();
    for ((topic, kind), (done, duplicates)) in counts {
        deferred.statement(COUNT);
        deferred.bind(consumer)?;
        deferred.bind(topic)?;
        deferred.bind(kind)?;
        deferred.bind(done)?;
        deferred.bind(duplicates)?;
    }
    Ok(())
}

/// The smallest id that a message made at `time` can have.
fn first_id(time: Timestamp) -> MessageId {
    let millis = u64::try_from(time.as_millis()).unwrap_or(0);
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    MessageId::from_bytes(bytes)
}

fn hex(id: MessageId) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    id.as_bytes().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_id_of_a_time_is_not_above_any_id_made_then() {
        let now = Timestamp::from_millis(1_700_000_000_123);
        assert!(first_id(now) <= MessageId::new(now));
        assert!(first_id(now) > MessageId::new(Timestamp::from_millis(1_700_000_000_122)));
        assert_eq!(hex(first_id(Timestamp::from_millis(0x0a))), format!("00000000000a{:020}", 0));
    }
}
