//! The barrier: which commands of sagas have passed, and how they were answered.
//!
//! Answers go with COMMIT: the commands of one step never share a transaction.

use antiphon_core::Timestamp;
use antiphon_messaging::Message;
use antiphon_outbox::{InboxEntry, InboxStore, StoreError};
use antiphon_saga::{BarrierKey, BarrierStore, Passage, Passed, Side, StoredReply};
use bytes::Bytes;
use sqlx::Row;

use super::PostgresStore;
use super::connection::Connection;
use super::executed::ANSWER;
use super::literal::Text;
use super::saga::uuid;
use crate::error::store_error;

/// Waits for another transaction that has noted the same.
const PASS: &str = "
INSERT INTO antiphon_barrier (saga, step, side, at, blocked) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT DO NOTHING";

const LOOK: &str = "
SELECT blocked, done, reason, message FROM antiphon_barrier
 WHERE saga = $1 AND step = $2 AND side = $3";

const FORGET: &str = "
DELETE FROM antiphon_barrier WHERE (saga, step, side) IN
    (SELECT saga, step, side FROM antiphon_barrier WHERE at < $1
      LIMIT $2 FOR UPDATE SKIP LOCKED)";

impl BarrierStore for PostgresStore {
    async fn pass(
        &self,
        connection: &mut Connection,
        key: &BarrierKey,
        now: Timestamp,
    ) -> Result<Passage, StoreError> {
        let is_first = note(connection, key, now, false).await?;
        passage(connection, key, now, is_first).await
    }

    async fn enter_and_pass(
        &self,
        connection: &mut Connection,
        consumer: &str,
        message: &Message,
        key: &BarrierKey,
        now: Timestamp,
    ) -> Result<(InboxEntry, Option<Passage>), StoreError> {
        let entered = self.enter_with_command(connection, consumer, message, key, now).await?;
        let (entry, is_first) = match entered {
            Some(entered) => entered,
            None => {
                let entries = self.enter(connection, consumer, &[message]).await?;
                let is_new = entries.contains(&InboxEntry::New);
                let is_first = is_new && note(connection, key, now, false).await?;
                (entries.into_iter().next().unwrap_or(InboxEntry::Duplicate), is_first)
            }
        };
        Ok(match entry {
            InboxEntry::New => (entry, Some(passage(connection, key, now, is_first).await?)),
            InboxEntry::Duplicate | InboxEntry::BeyondHorizon => (entry, None),
        })
    }

    async fn answer(
        &self,
        connection: &mut Connection,
        key: &BarrierKey,
        reply: &StoredReply,
    ) -> Result<(), StoreError> {
        match reply {
            StoredReply::Done(body) => {
                let text = connection.defer(ANSWER).bytes(body).sql(",");
                text.id(key.saga.as_bytes()).sql(",").text(&key.step)?;
                text.sql(",").number(side_number(key.side)).sql(")");
                Ok(())
            }
            StoredReply::Refused { reason, message } => {
                let text = connection.defer("UPDATE antiphon_barrier SET done = NULL, reason = ");
                text.text(&printable(reason))?.sql(", message = ").text(&printable(message))?;
                write_key(text, key)
            }
        }
    }

    async fn retract(
        &self,
        connection: &mut Connection,
        key: &BarrierKey,
    ) -> Result<(), StoreError> {
        write_key(connection.defer("DELETE FROM antiphon_barrier"), key)
    }

    async fn forget_passed(&self, before: Timestamp, count_max: u32) -> Result<u64, StoreError> {
        let mut turn = self.bookkeeping().await?;
        let forgotten = self
            .answer(
                sqlx::query(FORGET)
                    .bind(before.as_micros())
                    .bind(i64::from(count_max))
                    .execute(&mut *turn),
            )
            .await;
        let forgotten =
            turn.ended(forgotten).map_err(store_error("forgetting commands of sagas"))?;
        Ok(forgotten.rows_affected())
    }
}

pub(super) const fn side_number(side: Side) -> i32 {
    match side {
        Side::Action => 0,
        Side::Undo => 1,
    }
}

/// What people wrote must not fail the work for a byte that cannot be kept.
fn printable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn write_key(text: &mut Text, key: &BarrierKey) -> Result<(), StoreError> {
    text.sql(" WHERE saga = ").id(key.saga.as_bytes()).sql(" AND step = ").text(&key.step)?;
    text.sql(" AND side = ").number(side_number(key.side));
    Ok(())
}

/// What a command may do that was noted, or had been there already.
async fn passage(
    connection: &mut Connection,
    key: &BarrierKey,
    now: Timestamp,
    is_first: bool,
) -> Result<Passage, StoreError> {
    if !is_first {
        return Ok(look(connection, key).await?.again());
    }
    if key.side == Side::Action {
        return Ok(Passage::First);
    }
    let action = BarrierKey { side: Side::Action, ..key.clone() };
    if note(connection, &action, now, true).await? {
        return Ok(Passage::Empty);
    }
    Ok(look(connection, &action).await?.undo())
}

/// Writes the command down; false when it is there already.
async fn note(
    connection: &mut Connection,
    key: &BarrierKey,
    now: Timestamp,
    blocked: bool,
) -> Result<bool, StoreError> {
    let noted = sqlx::query(PASS)
        .bind(uuid(key.saga))
        .bind(&key.step)
        .bind(side_number(key.side))
        .bind(now.as_micros())
        .bind(blocked)
        .execute(&mut **connection)
        .await
        .map_err(store_error("passing the barrier"))?;
    Ok(noted.rows_affected() == 1)
}

async fn look(connection: &mut Connection, key: &BarrierKey) -> Result<Passed, StoreError> {
    let row = sqlx::query(LOOK)
        .bind(uuid(key.saga))
        .bind(&key.step)
        .bind(side_number(key.side))
        .fetch_one(&mut **connection)
        .await
        .map_err(store_error("looking at the barrier"))?;
    let done = row.get::<Option<Vec<u8>>, _>(1).map(|body| StoredReply::Done(Bytes::from(body)));
    let refused = row.get::<Option<String>, _>(2).map(|reason| StoredReply::Refused {
        reason,
        message: row.get::<Option<String>, _>(3).unwrap_or_default(),
    });
    Ok(Passed { blocked: row.get(0), answer: done.or(refused) })
}
