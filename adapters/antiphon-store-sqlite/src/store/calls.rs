//! Stored answers of idempotent calls.

use antiphon_core::Timestamp;
use antiphon_outbox::{CallStore, Store, StoreError, StoredCall};
use bytes::Bytes;
use sqlx::Row;

use super::connection::Connection;
use super::{SqliteStore, commit};
use crate::error::{code, primary_code, store_error};

impl CallStore for SqliteStore {
    async fn recall(
        &self,
        connection: &mut Connection,
        method: &str,
        key: &str,
    ) -> Result<Option<StoredCall>, StoreError> {
        let row = sqlx::query(
            "SELECT request_hash, answer FROM antiphon_call WHERE method = ? AND key = ?",
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
        sqlx::query(
            "INSERT INTO antiphon_call (method, key, at, request_hash, answer)
             VALUES (?, ?, ?, ?, ?)",
        )
        .bind(method)
        .bind(key)
        .bind(self.now().as_micros())
        .bind(call.request_hash.cast_signed())
        .bind(call.answer.as_ref())
        .execute(&mut **connection)
        .await
        .map(drop)
        .map_err(|error| match primary_code(&error) {
            Some(code::CONSTRAINT) => StoreError::Busy(error.into()),
            _ => store_error("remembering an answer")(error),
        })
    }

    async fn forget(&self, before: Timestamp) -> Result<u64, StoreError> {
        let mut connection = self.begin().await?;
        let forgotten = sqlx::query("DELETE FROM antiphon_call WHERE at < ?")
            .bind(before.as_micros())
            .execute(&mut *connection)
            .await
            .map_err(store_error("forgetting answers"))?
            .rows_affected();
        commit(connection, "forgetting answers").await?;
        Ok(forgotten)
    }
}
