//! The inbox: which messages a consumer has handled, remembered up to the horizon.
//!
//! Ids are UUIDv7 and tell their day, so one id always meets the same rows, and the horizon is the
//! smallest id that is remembered. The days are dealt into partitions by turns, and a day that is
//! beyond the horizon is forgotten by emptying its partition, which costs the same however many
//! entries it has. Entries of the day in which the horizon lies stay until all of that day is
//! beyond it; nobody asks for them any more.
//!
//! **Why nothing is executed twice** while the horizon moves: `enter` first inserts and then reads
//! the horizon; `expire` first moves the horizon, commits, and then forgets. An insertion that did
//! not meet its earlier entry came after the forgetting, and so sees the horizon that was moved
//! before it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::{Message, row};
use antiphon_outbox::{HandledCount, InboxEntry, InboxStore, Store, StoreError};
use sqlx::{Connection as _, MySqlConnection, Row};

use super::connection::Connection;
use super::{MysqlStore, commit};
use crate::error::{Trouble, store_error, trouble};
use crate::schema::INBOX_PARTITIONS;
use crate::session::{self, Kind};
use crate::sql::{Answer, Sql, count, run, text};

const MILLIS_PER_DAY: i64 = 86_400_000;

/// Entries that are deleted in one transaction where a partition cannot be emptied.
const FORGET_AT_ONCE: u32 = 5_000;

const READ_HORIZON: &str = "SELECT bytes FROM antiphon_value WHERE name = 'horizon'";

impl InboxStore for MysqlStore {
    async fn enter(
        &self,
        connection: &mut Connection,
        consumer: &str,
        messages: &[&Message],
    ) -> Result<Vec<InboxEntry>, StoreError> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        // IGNORE is to hide entries that are there already, and nothing else.
        if consumer.len() > 255 {
            let source = "the name of the consumer has more than 255 bytes".into();
            return Err(StoreError::Failed { action: "entering the inbox", source });
        }
        let known = MessageId::from_bytes(*self.0.horizon.lock());
        // In order, so that two batches never wait for each other in a circle.
        let ids: BTreeSet<MessageId> = messages
            .iter()
            .map(|message| message.id)
            .filter(|id| id.made_at().is_some() && *id >= known)
            .collect();
        let ids: Vec<MessageId> = ids.into_iter().collect();
        let (mut new, horizon) = insert(connection, consumer, &ids).await?;
        {
            let mut known = self.0.horizon.lock();
            *known = (*known).max(*horizon.as_bytes());
        }
        let mut entries = Vec::with_capacity(messages.len());
        for message in messages {
            let is_beyond = message.id.made_at().is_none() || message.id < horizon;
            entries.push(if is_beyond {
                InboxEntry::BeyondHorizon
            } else if new.remove(&message.id) {
                InboxEntry::New
            } else {
                InboxEntry::Duplicate
            });
        }
        let shard = self.shard(connection.number());
        defer_counts(connection, shard, consumer, messages, &entries);
        Ok(entries)
    }

    async fn expire(&self, horizon: Timestamp) -> Result<u64, StoreError> {
        let first = first_id(horizon);
        let mut connection = self.begin().await?;
        let mut sql = Sql::new("UPDATE antiphon_value SET bytes = ");
        sql.value(first.as_bytes()).sql(" WHERE name = 'horizon' AND bytes < ");
        sql.value(first.as_bytes());
        connection.deferred().statement(&sql);
        commit(connection, "moving the horizon").await?;
        let answers = self.ask("reading the horizon", Sql::new(READ_HORIZON)).await?;
        let horizon = read_horizon(&answers).map_err(store_error("reading the horizon"))?;
        self.forget_before(day_of(horizon)).await
    }

    async fn handled(&self) -> Result<Vec<HandledCount>, StoreError> {
        let sql = Sql::new(
            "SELECT consumer, topic, kind, CAST(sum(done) AS SIGNED), \
                    CAST(sum(duplicates) AS SIGNED) \
               FROM antiphon_handled GROUP BY consumer, topic, kind ORDER BY consumer, topic, kind",
        );
        let answers = self.ask("counting handled messages", sql).await?;
        let rows = answers.iter().flat_map(|answer| &answer.rows);
        rows.map(|row| {
            Ok(HandledCount {
                consumer: text(row, 0)?,
                topic: text(row, 1)?,
                kind: text(row, 2)?,
                done: count(row, 3)?,
                duplicates: count(row, 4)?,
            })
        })
        .collect::<Result<_, sqlx::Error>>()
        .map_err(store_error("counting handled messages"))
    }
}

impl MysqlStore {
    /// Forgets the days before `day`, and says how many entries they had.
    async fn forget_before(&self, day: i64) -> Result<u64, StoreError> {
        let mut sql = Sql::default();
        sql.list(" UNION ALL ", 0..INBOX_PARTITIONS, |sql, partition| {
            sql.sql("SELECT ").number(partition).sql(", min(day), max(day) FROM antiphon_inbox ");
            sql.sql("PARTITION (p").number(partition).sql(")");
        });
        let answers = self.ask("looking at the inbox", sql).await?;
        let mut whole = Vec::new();
        let mut parts = Vec::new();
        for row in answers.iter().flat_map(|answer| &answer.rows) {
            let failed = || store_error("looking at the inbox");
            let partition: i64 = row.try_get(0).map_err(failed())?;
            let first: Option<i64> = row.try_get(1).map_err(failed())?;
            let last: Option<i64> = row.try_get(2).map_err(failed())?;
            if last.is_some_and(|last| last < day) {
                whole.push(partition);
            } else if first.is_some_and(|first| first < day) {
                parts.push(partition);
            }
        }
        let mut forgotten = 0;
        if !whole.is_empty() {
            match self.empty_partitions(&whole, day).await {
                Ok(count) => forgotten += count,
                // Somebody works with the inbox just now; the next round comes in a minute.
                Err(error) if trouble(&error) == Trouble::Conflict => {
                    tracing::debug!(%error, "old days of the inbox are forgotten later");
                }
                Err(error) if trouble(&error) == Trouble::Refused => {
                    tracing::debug!(%error, "old days of the inbox are deleted row by row");
                    parts.extend(whole);
                }
                Err(error) => return Err(store_error("forgetting inbox entries")(error)),
            }
        }
        Ok(forgotten + self.delete_before(&parts, day).await?)
    }

    /// Empties partitions that have only days before `day`. It is looked again under a lock on the
    /// table, which is not waited for, since others would wait behind it.
    async fn empty_partitions(&self, partitions: &[i64], day: i64) -> Result<u64, sqlx::Error> {
        let inner = &self.0;
        let options = inner.location.options();
        let mut connection = session::connect(&options, Kind::Reads, &inner.settings).await?;
        let emptied = session::within(
            inner.settings.statement_timeout,
            empty_locked(&mut connection, partitions, day),
        )
        .await;
        // Unlocks as well.
        let _ = connection.close().await;
        emptied
    }

    /// Deletes the days before `day` of partitions that have later ones as well.
    async fn delete_before(&self, partitions: &[i64], day: i64) -> Result<u64, StoreError> {
        let mut forgotten = 0;
        for partition in partitions {
            let mut sql = Sql::new("SELECT DISTINCT day FROM antiphon_inbox PARTITION (p");
            sql.number(*partition).sql(") WHERE day < ").number(day);
            let answers = self.ask("looking at the inbox", sql).await?;
            for row in answers.iter().flat_map(|answer| &answer.rows) {
                let day: i64 = row.try_get(0).map_err(store_error("looking at the inbox"))?;
                forgotten += self.delete_day(*partition, day).await?;
            }
        }
        Ok(forgotten)
    }

    /// Deletes one day. A range of days would wait for the rows of transactions behind it.
    async fn delete_day(&self, partition: i64, day: i64) -> Result<u64, StoreError> {
        let mut forgotten = 0;
        loop {
            let mut sql = Sql::new("DELETE FROM antiphon_inbox PARTITION (p");
            sql.number(partition).sql(") WHERE day = ").number(day);
            sql.sql(" ORDER BY day, id, consumer LIMIT ").number(FORGET_AT_ONCE);
            let answers = self.ask("forgetting inbox entries", sql).await?;
            let removed = answers.first().map_or(0, |answer| answer.affected);
            forgotten += removed;
            if removed < u64::from(FORGET_AT_ONCE) {
                return Ok(forgotten);
            }
        }
    }
}

async fn empty_locked(
    connection: &mut MySqlConnection,
    partitions: &[i64],
    day: i64,
) -> Result<u64, sqlx::Error> {
    let lock = "SET SESSION lock_wait_timeout = 1; LOCK TABLES antiphon_inbox WRITE";
    run(connection, Sql::new(lock)).await?;
    let mut forgotten = 0;
    for partition in partitions {
        let mut sql = Sql::new("SELECT max(day), count(*) FROM antiphon_inbox PARTITION (p");
        sql.number(*partition).sql(")");
        let answers = run(connection, sql).await?;
        let Some(row) = answers.first().and_then(|answer| answer.rows.first()) else { continue };
        let last: Option<i64> = row.try_get(0)?;
        if last.is_some_and(|last| last < day) {
            let mut sql = Sql::new("ALTER TABLE antiphon_inbox TRUNCATE PARTITION p");
            sql.number(*partition);
            run(connection, sql).await?;
            forgotten += count(row, 1)?;
        }
    }
    run(connection, Sql::new("UNLOCK TABLES")).await?;
    Ok(forgotten)
}

/// Enters ids, which are in order and differ; answers which of them are new, and the horizon after
/// that.
async fn insert(
    connection: &mut Connection,
    consumer: &str,
    ids: &[MessageId],
) -> Result<(HashSet<MessageId>, MessageId), StoreError> {
    let failed = || store_error("entering the inbox");
    let mut sql = Sql::default();
    if ids.len() > 1 {
        sql.sql("SAVEPOINT antiphon_enter;");
    }
    if !ids.is_empty() {
        add_insert(&mut sql, consumer, ids);
    }
    sql.sql(READ_HORIZON);
    let answers = connection.run("entering the inbox", sql).await?;
    let horizon = read_horizon(&answers).map_err(failed())?;
    let inserted: u64 = answers.iter().rev().skip(1).take(1).map(|answer| answer.affected).sum();
    if ids.is_empty() || inserted == 0 {
        return Ok((HashSet::new(), horizon));
    }
    if usize::try_from(inserted).is_ok_and(|inserted| inserted == ids.len()) {
        return Ok((ids.iter().copied().collect(), horizon));
    }
    // Some were there. One by one tells which.
    let mut sql = Sql::new("ROLLBACK TO SAVEPOINT antiphon_enter;");
    for id in ids {
        add_insert(&mut sql, consumer, &[*id]);
    }
    sql.sql(READ_HORIZON);
    let answers = connection.run("entering the inbox", sql).await?;
    let horizon = read_horizon(&answers).map_err(failed())?;
    let answers = answers.iter().skip(1);
    let new = ids.iter().zip(answers).filter(|(_, answer)| answer.affected == 1).map(|(id, _)| *id);
    Ok((new.collect(), horizon))
}

fn add_insert(sql: &mut Sql, consumer: &str, ids: &[MessageId]) {
    sql.sql("INSERT IGNORE INTO antiphon_inbox (day, id, consumer) VALUES ");
    sql.list(",", ids, |sql, id| {
        sql.sql("(").number(day_of(*id)).sql(",").value(id.as_bytes()).sql(",");
        sql.value(consumer).sql(")");
    });
    sql.sql(";");
}

/// The horizon in the last of the answers.
fn read_horizon(answers: &[Answer]) -> Result<MessageId, sqlx::Error> {
    let row = answers.last().and_then(|answer| answer.rows.first());
    let bytes: &[u8] = row.ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
    row::decode_id(bytes).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// Counts what was answered, when the transaction commits.
fn defer_counts(
    connection: &mut Connection,
    shard: i64,
    consumer: &str,
    messages: &[&Message],
    entries: &[InboxEntry],
) {
    // In order, so that two transactions never wait for each other in a circle.
    let mut counts: BTreeMap<(&str, &str), (i64, i64)> = BTreeMap::new();
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
    for ((topic, kind), (done, duplicates)) in counts {
        let mut sql = Sql::new(
            "INSERT INTO antiphon_handled (shard, consumer, topic, kind, done, duplicates) VALUES (",
        );
        sql.number(shard).sql(",").value(consumer).sql(",").value(topic).sql(",").value(kind);
        sql.sql(",").number(done).sql(",").number(duplicates);
        sql.sql(") ON DUPLICATE KEY UPDATE done = done + ").number(done);
        sql.sql(", duplicates = duplicates + ").number(duplicates);
        connection.deferred().statement(&sql);
    }
}

/// The day in which a message was made, counted from the epoch.
fn day_of(id: MessageId) -> i64 {
    let mut millis = [0; 8];
    millis[2..].copy_from_slice(&id.as_bytes()[..6]);
    i64::from_be_bytes(millis) / MILLIS_PER_DAY
}

/// The smallest id that a message made at `time` can have.
fn first_id(time: Timestamp) -> MessageId {
    let millis = u64::try_from(time.as_millis()).unwrap_or(0);
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    MessageId::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_id_of_a_time_is_not_above_any_id_made_then() {
        let now = Timestamp::from_millis(1_700_000_000_123);
        assert!(first_id(now) <= MessageId::new(now));
        assert!(first_id(now) > MessageId::new(Timestamp::from_millis(1_700_000_000_122)));
    }

    #[test]
    fn an_id_tells_its_day() {
        for day in [0, 1, 19_675, 40_000] {
            for millis in [0, MILLIS_PER_DAY - 1] {
                let time = Timestamp::from_millis(day * MILLIS_PER_DAY + millis);
                assert_eq!(day_of(MessageId::new(time)), day);
                assert_eq!(day_of(first_id(time)), day);
            }
        }
    }
}
