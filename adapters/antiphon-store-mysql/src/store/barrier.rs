//! The barrier: which commands of sagas have passed, and how they were answered.
//!
//! Answers go with COMMIT: the commands of one step never share a transaction.

use antiphon_core::Timestamp;
use antiphon_outbox::StoreError;
use antiphon_saga::{BarrierKey, BarrierStore, Passage, Passed, Side, StoredReply};
use bytes::Bytes;
use sqlx::Row;

use super::MysqlStore;
use super::connection::Connection;
use crate::error::{Trouble, store_error, trouble};
use crate::sql::{Sql, text};

/// Commands that one statement removes.
const FORGET_AT_ONCE: usize = 500;

impl BarrierStore for MysqlStore {
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
        let mut sql = Sql::new("UPDATE antiphon_barrier SET done = ");
        match reply {
            StoredReply::Done(body) => sql.value(body).sql(", reason = NULL, message = NULL"),
            StoredReply::Refused { reason, message } => {
                sql.sql("NULL, reason = ").value(reason).sql(", message = ").value(message)
            }
        };
        add_key(&mut sql, key);
        connection.deferred().statement(&sql);
        Ok(())
    }

    async fn retract(
        &self,
        connection: &mut Connection,
        key: &BarrierKey,
    ) -> Result<(), StoreError> {
        let mut sql = Sql::new("DELETE FROM antiphon_barrier");
        add_key(&mut sql, key);
        connection.deferred().statement(&sql);
        Ok(())
    }

    async fn forget_passed(&self, before: Timestamp, count_max: u32) -> Result<u64, StoreError> {
        let mut sql = Sql::new("SELECT saga, step, side FROM antiphon_barrier WHERE at < ");
        sql.number(before.as_micros()).sql(" ORDER BY at LIMIT ").number(count_max);
        let answers = self.ask("looking for old commands of sagas", sql).await?;
        let rows = answers.iter().flat_map(|answer| &answer.rows);
        let mut keys = rows
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
            .collect::<Result<Vec<(Vec<u8>, Vec<u8>, i64)>, sqlx::Error>>()
            .map_err(store_error("looking for old commands of sagas"))?;
        // By their keys and in order: a range would wait for rows of transactions behind it.
        keys.sort_unstable();
        let mut forgotten = 0;
        for keys in keys.chunks(FORGET_AT_ONCE) {
            let mut sql =
                Sql::new("DELETE b FROM antiphon_barrier AS b FORCE INDEX (PRIMARY) WHERE ");
            sql.list(" OR ", keys, |sql, (saga, step, side)| {
                sql.sql("saga = ").value(saga).sql(" AND step = ").value(step);
                sql.sql(" AND side = ").number(*side);
            });
            let answers = self.ask("forgetting commands of sagas", sql).await?;
            forgotten += answers.first().map_or(0, |answer| answer.affected);
        }
        Ok(forgotten)
    }
}

const fn number(side: Side) -> i64 {
    match side {
        Side::Action => 0,
        Side::Undo => 1,
    }
}

fn add_key(sql: &mut Sql, key: &BarrierKey) {
    sql.sql(" WHERE saga = ").value(key.saga.as_bytes()).sql(" AND step = ").value(&key.step);
    sql.sql(" AND side = ").number(number(key.side));
}

/// Writes the command down; false when it is there already.
async fn note(
    connection: &mut Connection,
    key: &BarrierKey,
    now: Timestamp,
    blocked: bool,
) -> Result<bool, StoreError> {
    let mut sql = Sql::new("INSERT INTO antiphon_barrier (saga, step, side, at, blocked) VALUES (");
    sql.value(key.saga.as_bytes()).sql(",").value(&key.step).sql(",").number(number(key.side));
    sql.sql(",").number(now.as_micros()).sql(",").number(blocked).sql(")");
    match connection.try_run(sql).await {
        Ok(_) => Ok(true),
        Err(error) if trouble(&error) == Trouble::Duplicate => Ok(false),
        Err(error) => Err(store_error("passing the barrier")(error)),
    }
}

async fn look(connection: &mut Connection, key: &BarrierKey) -> Result<Passed, StoreError> {
    let mut sql = Sql::new("SELECT blocked, done, reason, message FROM antiphon_barrier");
    add_key(&mut sql, key);
    let answers = connection.run("looking at the barrier", sql).await?;
    let row = answers.first().and_then(|answer| answer.rows.first());
    let read = || {
        let row = row.ok_or(sqlx::Error::RowNotFound)?;
        let done = row.try_get::<Option<Vec<u8>>, _>(1)?;
        let done = done.map(|body| StoredReply::Done(Bytes::from(body)));
        let refused = match row.try_get::<Option<Vec<u8>>, _>(2)? {
            Some(_) => Some(StoredReply::Refused { reason: text(row, 2)?, message: text(row, 3)? }),
            None => None,
        };
        Ok(Passed { blocked: row.try_get::<i64, _>(0)? != 0, answer: done.or(refused) })
    };
    read().map_err(store_error("looking at the barrier"))
}
