//! Stored answers of idempotent calls.
//!
//! An answer goes with COMMIT; where another transaction has stored one meanwhile, COMMIT is not
//! reached, and the commit is busy.

use antiphon_core::Timestamp;
use antiphon_outbox::{CallStore, Store, StoreError, StoredCall};
use bytes::Bytes;
use sqlx::Row;

use super::MysqlStore;
use super::connection::Connection;
use crate::error::store_error;
use crate::sql::Sql;

/// Answers that one statement removes.
const FORGET_AT_ONCE: u32 = 500;

impl CallStore for MysqlStore {
    async fn recall(
        &self,
        connection: &mut Connection,
        method: &str,
        key: &str,
    ) -> Result<Option<StoredCall>, StoreError> {
        let mut sql = Sql::new("SELECT request_hash, answer FROM antiphon_call WHERE method = ");
        sql.value(method).sql(" AND name = ").value(key);
        let answers = connection.run("recalling an answer", sql).await?;
        let Some(row) = answers.first().and_then(|answer| answer.rows.first()) else {
            return Ok(None);
        };
        let failed = || store_error("recalling an answer");
        Ok(Some(StoredCall {
            request_hash: row.try_get::<i64, _>(0).map_err(failed())?.cast_unsigned(),
            answer: Bytes::from(row.try_get::<Vec<u8>, _>(1).map_err(failed())?),
        }))
    }

    async fn remember(
        &self,
        connection: &mut Connection,
        method: &str,
        key: &str,
        call: &StoredCall,
    ) -> Result<(), StoreError> {
        let mut sql =
            Sql::new("INSERT INTO antiphon_call (method, name, at, request_hash, answer) VALUES (");
        sql.value(method).sql(",").value(key).sql(",").number(self.now().as_micros());
        sql.sql(",").number(call.request_hash.cast_signed()).sql(",").value(&call.answer).sql(")");
        connection.deferred().statement(&sql);
        Ok(())
    }

    async fn forget(&self, before: Timestamp) -> Result<u64, StoreError> {
        let mut forgotten = 0;
        loop {
            let mut sql = Sql::new("SELECT method, name FROM antiphon_call WHERE at < ");
            sql.number(before.as_micros()).sql(" ORDER BY at LIMIT ").number(FORGET_AT_ONCE);
            let answers = self.ask("looking for old answers", sql).await?;
            let rows = answers.iter().flat_map(|answer| &answer.rows);
            let mut places = rows
                .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
                .collect::<Result<Vec<(Vec<u8>, Vec<u8>)>, sqlx::Error>>()
                .map_err(store_error("looking for old answers"))?;
            if places.is_empty() {
                return Ok(forgotten);
            }
            // By their keys and in order: a range would wait for rows of transactions behind it.
            places.sort_unstable();
            let mut sql =
                Sql::new("DELETE c FROM antiphon_call AS c FORCE INDEX (PRIMARY) WHERE at < ");
            sql.number(before.as_micros()).sql(" AND (").list(" OR ", &places, |sql, place| {
                sql.sql("method = ").value(&place.0).sql(" AND name = ").value(&place.1);
            });
            sql.sql(")");
            let answers = self.ask("forgetting answers", sql).await?;
            forgotten += answers.first().map_or(0, |answer| answer.affected);
        }
    }
}
