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
        let mut sql = Sql::new(
            "INSERT INTO antiphon_call (method, name, at, request_hash, answer) VALUES (",
        );
        sql.value(method).sql(",").value(key).sql(",").number(self.now().as_micros());
        sql.sql(",").number(call.request_hash.cast_signed()).sql(",").value(&call.answer).sql(")");
        connection.deferred().statement(&sql);
        Ok(())
    }

    async fn forget(&self, before: Timestamp) -> Result<u64, StoreError> {
        const AT_ONCE: u32 = 5_000;
        let mut forgotten = 0;
        loop {
            let mut sql = Sql::new("DELETE FROM antiphon_call WHERE at < ");
            sql.number(before.as_micros()).sql(" ORDER BY at LIMIT ").number(AT_ONCE);
            let answers = self.ask("forgetting answers", sql).await?;
            let removed = answers.first().map_or(0, |answer| answer.affected);
            forgotten += removed;
            if removed < u64::from(AT_ONCE) {
                return Ok(forgotten);
            }
        }
    }
}
