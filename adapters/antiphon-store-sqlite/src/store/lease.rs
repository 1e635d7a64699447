//! Leases: exclusive rights on lanes, as rows with an end and a token that never repeats.

use std::time::Duration;

use antiphon_core::Timestamp;
use antiphon_outbox::{Lease, LeaseStore, Store, StoreError};
use sqlx::SqliteExecutor;

use super::{SqliteStore, commit, json};
use crate::error::store_error;

const LIVE: &str = "SELECT lane FROM antiphon_lease WHERE scope = ? AND until > ?";

const TAKE: &str = "
INSERT OR REPLACE INTO antiphon_lease (scope, lane, token, owner, until)
SELECT ?1, value ->> 0, value ->> 1, ?2, ?3 FROM json_each(?4)";

const RENEW: &str = "
UPDATE antiphon_lease SET until = ?1
 WHERE (scope, lane, token) IN
    (SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?2))
RETURNING token";

impl LeaseStore for SqliteStore {
    async fn acquire(
        &self,
        scope: &str,
        lanes: u32,
        count_max: u32,
        owner: &str,
        ttl: Duration,
    ) -> Result<Vec<Lease>, StoreError> {
        // Most attempts find every lane taken; those need not wait for their turn to write.
        if free_lanes(self.reader(), scope, lanes, self.now()).await?.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.begin().await?;
        let mut free = free_lanes(&mut *connection, scope, lanes, self.now()).await?;
        // Instances that start together should not all ask for the same lanes.
        fastrand::shuffle(&mut free);
        free.truncate(usize::try_from(count_max).unwrap_or(usize::MAX));
        if free.is_empty() {
            return Ok(Vec::new());
        }
        let count = i64::try_from(free.len()).unwrap_or(i64::MAX);
        let last: i64 = sqlx::query_scalar(
            "UPDATE antiphon_value SET value = value + ? WHERE name = 'token' RETURNING value",
        )
        .bind(count)
        .fetch_one(&mut *connection)
        .await
        .map_err(store_error("drawing tokens"))?;
        let until = self.now() + ttl;
        let leases: Vec<Lease> = free
            .into_iter()
            .zip(last - count + 1..)
            .map(|(lane, token)| Lease { scope: scope.to_owned(), lane, token, until })
            .collect();
        sqlx::query(TAKE)
            .bind(scope)
            .bind(owner)
            .bind(until.as_micros())
            .bind(json::array(leases.iter().map(|lease| (lease.lane, lease.token))))
            .execute(&mut *connection)
            .await
            .map_err(store_error("taking leases"))?;
        commit(connection, "taking leases").await?;
        Ok(leases)
    }

    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.begin().await?;
        let until = self.now() + ttl;
        let kept: Vec<i64> = sqlx::query_scalar(RENEW)
            .bind(until.as_micros())
            .bind(keys(leases))
            .fetch_all(&mut *connection)
            .await
            .map_err(store_error("renewing leases"))?;
        commit(connection, "renewing leases").await?;
        let kept = leases.iter().filter(|lease| kept.contains(&lease.token));
        Ok(kept.map(|lease| Lease { until, ..lease.clone() }).collect())
    }

    async fn release(&self, leases: &[Lease]) -> Result<(), StoreError> {
        if leases.is_empty() {
            return Ok(());
        }
        let mut connection = self.begin().await?;
        sqlx::query(
            "DELETE FROM antiphon_lease WHERE (scope, lane, token) IN
                (SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?))",
        )
        .bind(keys(leases))
        .execute(&mut *connection)
        .await
        .map_err(store_error("releasing leases"))?;
        commit(connection, "releasing leases").await
    }

    async fn instances(&self, scope: &str, owner: &str, ttl: Duration) -> Result<u32, StoreError> {
        let mut connection = self.begin().await?;
        let now = self.now();
        sqlx::query(
            "INSERT OR REPLACE INTO antiphon_instance (scope, owner, seen) VALUES (?, ?, ?)",
        )
        .bind(scope)
        .bind(owner)
        .bind(now.as_micros())
        .execute(&mut *connection)
        .await
        .map_err(store_error("announcing an instance"))?;
        sqlx::query("DELETE FROM antiphon_instance WHERE scope = ? AND seen < ?")
            .bind(scope)
            .bind((now - ttl).as_micros())
            .execute(&mut *connection)
            .await
            .map_err(store_error("forgetting instances"))?;
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM antiphon_instance WHERE scope = ?")
                .bind(scope)
                .fetch_one(&mut *connection)
                .await
                .map_err(store_error("counting instances"))?;
        commit(connection, "announcing an instance").await?;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    async fn leave(&self, scope: &str, owner: &str) -> Result<(), StoreError> {
        let mut connection = self.begin().await?;
        for statement in [
            "DELETE FROM antiphon_lease WHERE scope = ? AND owner = ?",
            "DELETE FROM antiphon_instance WHERE scope = ? AND owner = ?",
        ] {
            sqlx::query(statement)
                .bind(scope)
                .bind(owner)
                .execute(&mut *connection)
                .await
                .map_err(store_error("leaving"))?;
        }
        commit(connection, "leaving").await
    }
}

async fn free_lanes(
    executor: impl SqliteExecutor<'_>,
    scope: &str,
    lanes: u32,
    now: Timestamp,
) -> Result<Vec<u32>, StoreError> {
    let live: Vec<u32> = sqlx::query_scalar(LIVE)
        .bind(scope)
        .bind(now.as_micros())
        .fetch_all(executor)
        .await
        .map_err(store_error("reading leases"))?;
    Ok((0..lanes).filter(|lane| !live.contains(lane)).collect())
}

fn keys(leases: &[Lease]) -> String {
    json::array(leases.iter().map(|lease| (lease.scope.as_str(), lease.lane, lease.token)))
}
