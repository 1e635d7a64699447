//! The barrier: which commands of sagas have passed, and how they were answered.
//!
//! Answers go with COMMIT: the commands of one step never share a transaction.

use antiphon_core::Timestamp;
use antiphon_outbox::{Store, StoreError};
use antiphon_saga::{BarrierKey, BarrierStore, Passage, Passed, Side, StoredReply};
use bytes::Bytes;
use sqlx::Row;

use super::connection::Connection;
use super::{SqliteStore, commit};
use crate::error::store_error;

const PASS: &str = "
INSERT INTO antiphon_barrier (saga, step, side, at, blocked) VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING";

const LOOK: &str = "
SELECT blocked, done, reason, message FROM antiphon_barrier
 WHERE saga = ? AND step = ? AND side = ?";

const ANSWER: &str = "
UPDATE antiphon_barrier SET done = ?, reason = ?, message = ?
 WHERE saga = ? AND step = ? AND side = ?";

const RETRACT: &str = "DELETE FROM antiphon_barrier WHERE saga = ? AND step = ? AND side = ?";

const FORGET: &str = "
DELETE FROM antiphon_barrier WHERE (saga, step, side) IN
    (SELECT saga, step, side FROM antiphon_barrier WHERE at < ? LIMIT ?)";

impl BarrierStore for SqliteStore {
    async fn pass(
        &self,
        connection: &mut Connection,
        key: &BarrierKey,
        now: Timestamp,
    ) -> Result<Passage, StoreError> {
        if !note(connection, key, now, false).await? {
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

    async fn answer(
        &self,
        connection: &mut Connection,
        key: &BarrierKey,
        reply: &StoredReply,
    ) -> Result<(), StoreError> {
        let (done, refused) = match reply {
            StoredReply::Done(body) => (Some(body), None),
            StoredReply::Refused { reason, message } => (None, Some((reason, message))),
        };
        let deferred = connection.deferred();
        deferred.statement(ANSWER);
        deferred.bind(done.map(|body| body.as_ref()))?;
        deferred.bind(refused.map(|(reason, _)| reason))?;
        deferred.bind(refused.map(|(_, message)| message))?;
        bind_key(connection, key)
    }

    async fn retract(
        &self,
        connection: &mut Connection,
        key: &BarrierKey,
    ) -> Result<(), StoreError> {
        connection.deferred().statement(RETRACT);
        bind_key(connection, key)
    }

    async fn forget_passed(&self, before: Timestamp, count_max: u32) -> Result<u64, StoreError> {
        let mut connection = self.begin().await?;
        let forgotten = sqlx::query(FORGET)
            .bind(before.as_micros())
            .bind(count_max)
            .execute(&mut *connection)
            .await
            .map_err(store_error("forgetting commands of sagas"))?
            .rows_affected();
        commit(connection, "forgetting commands of sagas").await?;
        Ok(forgotten)
    }
}

const fn number(side: Side) -> u8 {
    match side {
        Side::Action => 0,
        Side::Undo => 1,
    }
}

fn bind_key(connection: &mut Connection, key: &BarrierKey) -> Result<(), StoreError> {
    let deferred = connection.deferred();
    deferred.bind(key.saga.as_bytes().as_slice())?;
    deferred.bind(&key.step)?;
    deferred.bind(number(key.side))
}

/// Writes the command down; false when it is there already.
async fn note(
    connection: &mut Connection,
    key: &BarrierKey,
    now: Timestamp,
    blocked: bool,
) -> Result<bool, StoreError> {
    let noted = sqlx::query(PASS)
        .bind(key.saga.as_bytes().as_slice())
        .bind(&key.step)
        .bind(number(key.side))
        .bind(now.as_micros())
        .bind(blocked)
        .execute(&mut **connection)
        .await
        .map_err(store_error("passing the barrier"))?;
    Ok(noted.rows_affected() == 1)
}

async fn look(connection: &mut Connection, key: &BarrierKey) -> Result<Passed, StoreError> {
    let row = sqlx::query(LOOK)
        .bind(key.saga.as_bytes().as_slice())
        .bind(&key.step)
        .bind(number(key.side))
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
