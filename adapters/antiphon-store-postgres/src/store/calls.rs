//! Stored answers of idempotent calls.
//!
//! An answer goes with COMMIT. Of two transactions with one key, the second waits there for the
//! first, and fails when that has committed.

use antiphon_core::Timestamp;
use antiphon_outbox::{CallStore, Store, StoreError, StoredCall};
use bytes::Bytes;
use sqlx::Row;

use super::PostgresStore;
use super::connection::Connection;
use crate::error::store_error;

/// Answers that are forgotten in one statement, so that it is done in time.
const FORGET_AT_ONCE: i64 = 5_000;

const FORGET: &str = "
DELETE FROM antiphon_call WHERE (method, key) IN
    (SELECT method, key FROM antiphon_call WHERE at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)";

impl CallStore for PostgresStore {
    async fn recall(
        &self,
        connection: &mut Connection,
        method: &str,
        key: &str,
    ) -> Result<Option<StoredCall>, StoreError> {
        let row = sqlx::query(
            "SELECT request_hash, answer FROM antiphon_call WHERE method = $1 AND key = $2",
        )
        .bind(method)
        .bind(key)
        .fetch_optional(&mut **connection)
        .await
        .map_err(store_error("recalling an answer"))?;
        Ok(row.map(|row| StoredCall {
            request_hash: row.get::<i64, _>(0).cast_unsigned(),
            answer: Bytes::from(row.get::<Vec<u8>, _>(1)),
        }))
    }

    async fn remember(
        &self,
        connection: &mut Connection,
        method: &str,
        key: &str,
        call: &StoredCall,
    ) -> Result<(), StoreError> {
        let at = self.now().as_micros();
        connection
            .defer("INSERT INTO antiphon_call (method, key, at, request_hash, answer) VALUES (")
            .text(method)?
            .sql(",")
            .text(key)?
            .sql(",")
            .number(at)
            .sql(",")
            .number(call.request_hash.cast_signed())
            .sql(",")
            .bytes(&call.answer)
            .sql(")");
        Ok(())
    }

    async fn forget(&self, before: Timestamp) -> Result<u64, StoreError> {
        let mut forgotten = 0;
        loop {
            let mut turn = self.bookkeeping().await?;
            let deleting = sqlx::query(FORGET)
                .bind(before.as_micros())
                .bind(FORGET_AT_ONCE)
                .execute(&mut *turn);
            let deleted = self.answer(deleting).await;
            let deleted = turn.ended(deleted).map_err(store_error("forgetting answers"))?;
            forgotten += deleted.rows_affected();
            if deleted.rows_affected() < FORGET_AT_ONCE.unsigned_abs() {
                return Ok(forgotten);
            }
        }
    }
}
