//! Leases: exclusive rights on lanes, as rows with an end and a token that never repeats.
//!
//! Taking a lease waits for the disk, for a token must not be given twice after a crash; the rest is
//! bookkeeping that may be lost.

use std::time::Duration;

use antiphon_core::Timestamp;
use antiphon_outbox::{Lease, LeaseStore, Store, StoreError};
use sqlx::Row;

use super::PostgresStore;
use super::outbox::{lane, number};
use crate::error::store_error;

/// The scope of the relays.
const OUTBOX: &str = "outbox";

const LIVE: &str = "SELECT lane FROM antiphon_lease WHERE scope = $1 AND until > $2";

/// Two that want the same lane meet in its row: the second finds it taken. All take lanes in
/// ascending order, so nobody waits in a circle.
const TAKE: &str = "
INSERT INTO antiphon_lease AS l (scope, lane, token, owner, until)
SELECT $1, lane, nextval('antiphon_token'), $2, $3
  FROM (SELECT set_config('synchronous_commit', 'on', true)) AS durable,
       unnest($4::integer[]) AS lane
    ON CONFLICT (scope, lane) DO UPDATE
   SET token = excluded.token, owner = excluded.owner, until = excluded.until
 WHERE l.until <= $5
RETURNING lane, token";

const RENEW: &str = "
UPDATE antiphon_lease AS l SET until = $1
  FROM (SELECT scope, lane, token FROM antiphon_lease
         WHERE (scope, lane, token) IN
            (SELECT * FROM unnest($2::text[], $3::integer[], $4::bigint[]))
         ORDER BY scope, lane FOR UPDATE) AS own
 WHERE l.scope = own.scope AND l.lane = own.lane AND l.token = own.token
RETURNING l.token";

const RELEASE: &str = "
DELETE FROM antiphon_lease
 WHERE (scope, lane, token) IN (SELECT * FROM unnest($1::text[], $2::integer[], $3::bigint[]))";

const ANNOUNCE: &str = "
INSERT INTO antiphon_instance (scope, owner, seen) VALUES ($1, $2, $3)
ON CONFLICT (scope, owner) DO UPDATE SET seen = excluded.seen";

/// Those that fell silent long ago are removed; who fell silent only now is not counted.
const COUNT: &str = "
WITH gone AS (
    DELETE FROM antiphon_instance WHERE scope = $1 AND seen < $3
)
SELECT count(*) FROM antiphon_instance WHERE scope = $1 AND seen >= $2";

const LEAVE: &str = "
WITH gone AS (DELETE FROM antiphon_instance WHERE scope = $1 AND owner = $2)
DELETE FROM antiphon_lease WHERE scope = $1 AND owner = $2";

impl LeaseStore for PostgresStore {
    async fn acquire(
        &self,
        scope: &str,
        lanes: u32,
        count_max: u32,
        owner: &str,
        ttl: Duration,
    ) -> Result<Vec<Lease>, StoreError> {
        let now = self.now();
        let mut free = self.free_lanes(scope, lanes, now).await?;
        // Instances that start together should not all ask for the same lanes.
        fastrand::shuffle(&mut free);
        free.truncate(usize::try_from(count_max).unwrap_or(usize::MAX));
        free.sort_unstable();
        if free.is_empty() {
            return Ok(Vec::new());
        }
        let until = now + ttl;
        let mut turn = self.bookkeeping().await?;
        let taken = self
            .answer(
                sqlx::query(TAKE)
                    .bind(scope)
                    .bind(owner)
                    .bind(until.as_micros())
                    .bind(free)
                    .bind(now.as_micros())
                    .fetch_all(&mut *turn),
            )
            .await;
        let taken = turn.ended(taken).map_err(store_error("taking leases"))?;
        let lease = |lane, token| Lease { scope: scope.to_owned(), lane, token, until };
        Ok(taken.iter().map(|row| lease(lane(row.get(0)), row.get(1))).collect())
    }

    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let until = self.now() + ttl;
        let (scopes, lanes, tokens) = columns(leases);
        let mut turn = self.bookkeeping().await?;
        let kept = self
            .answer(
                sqlx::query_scalar(RENEW)
                    .bind(until.as_micros())
                    .bind(scopes)
                    .bind(lanes)
                    .bind(tokens)
                    .fetch_all(&mut *turn),
            )
            .await;
        let kept: Vec<i64> = turn.ended(kept).map_err(store_error("renewing leases"))?;
        let kept = leases.iter().filter(|lease| kept.contains(&lease.token));
        Ok(kept.map(|lease| Lease { until, ..lease.clone() }).collect())
    }

    async fn release(&self, leases: &[Lease]) -> Result<(), StoreError> {
        if leases.is_empty() {
            return Ok(());
        }
        let (scopes, lanes, tokens) = columns(leases);
        let mut turn = self.bookkeeping().await?;
        let released = self
            .answer(sqlx::query(RELEASE).bind(scopes).bind(lanes).bind(tokens).execute(&mut *turn))
            .await;
        turn.ended(released).map(drop).map_err(store_error("releasing leases"))
    }

    async fn instances(&self, scope: &str, owner: &str, ttl: Duration) -> Result<u32, StoreError> {
        let now = self.now();
        let mut turn = self.bookkeeping().await?;
        let announced = self
            .answer(
                sqlx::query(ANNOUNCE)
                    .bind(scope)
                    .bind(owner)
                    .bind(now.as_micros())
                    .execute(&mut *turn),
            )
            .await;
        if let Err(error) = announced {
            return turn.ended(Err(error)).map_err(store_error("announcing an instance"));
        }
        let count = self
            .answer(
                sqlx::query_scalar(COUNT)
                    .bind(scope)
                    .bind((now - ttl).as_micros())
                    .bind((now - ttl * 10).as_micros())
                    .fetch_one(&mut *turn),
            )
            .await;
        let count: i64 = turn.ended(count).map_err(store_error("counting instances"))?;
        if scope == OUTBOX {
            self.doorbell().is_alone(count <= 1, ttl);
        }
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    async fn leave(&self, scope: &str, owner: &str) -> Result<(), StoreError> {
        let mut turn = self.bookkeeping().await?;
        let left =
            self.answer(sqlx::query(LEAVE).bind(scope).bind(owner).execute(&mut *turn)).await;
        turn.ended(left).map(drop).map_err(store_error("leaving"))
    }
}

impl PostgresStore {
    /// The lanes that nobody has, as far as can be seen.
    async fn free_lanes(
        &self,
        scope: &str,
        lanes: u32,
        now: Timestamp,
    ) -> Result<Vec<i32>, StoreError> {
        let mut turn = self.bookkeeping().await?;
        let live = self
            .answer(
                sqlx::query_scalar(LIVE).bind(scope).bind(now.as_micros()).fetch_all(&mut *turn),
            )
            .await;
        let live: Vec<i32> = turn.ended(live).map_err(store_error("reading leases"))?;
        Ok((0..number(lanes)).filter(|lane| !live.contains(lane)).collect())
    }
}

fn columns(leases: &[Lease]) -> (Vec<String>, Vec<i32>, Vec<i64>) {
    (
        leases.iter().map(|lease| lease.scope.clone()).collect(),
        leases.iter().map(|lease| number(lease.lane)).collect(),
        leases.iter().map(|lease| lease.token).collect(),
    )
}
