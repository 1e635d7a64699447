//! Sagas: one row each.
//!
//! Loading locks the row until the end of the transaction, so turns of one saga come one after the
//! other. Saving goes with COMMIT. A revision that does not fit after all makes the statement, and
//! with it the commit, fail.

use antiphon_core::Timestamp;
use antiphon_outbox::StoreError;
use antiphon_saga::{SagaCount, SagaFilter, SagaId, SagaRow, SagaStore, State};
use bytes::Bytes;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::PostgresStore;
use super::connection::Connection;
use super::executed::SAVE;
use super::outbox::number;
use crate::error::store_error;

const INSERT: &str = "
INSERT INTO antiphon_saga
    (id, kind, correlation, version, state, parked, revision, wake_at, lane, data, progress,
     created_at, updated_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
ON CONFLICT DO NOTHING";

/// Reads whole rows, in the order in which [`read_row`] expects the columns.
macro_rules! select {
    ($which:literal) => {
        concat!(
            "SELECT id, kind, correlation, version, state, parked, revision, wake_at, data,
                    progress, created_at, updated_at
               FROM antiphon_saga ",
            $which
        )
    };
}

const LOAD: &str = select!("WHERE id = ANY ($1) ORDER BY id FOR UPDATE");

const FIND: &str = select!("WHERE correlation = $1 AND kind = $2");

const LIST: &str = select!(
    "WHERE id > $1 AND ($2::text IS NULL OR kind = $2) AND ($3::integer IS NULL OR state = $3)
       AND (parked OR NOT $4)
     ORDER BY id LIMIT $5"
);

const DUE: &str = "
SELECT id FROM antiphon_saga
 WHERE wake_at <= $1 AND lane = ANY ($2)
 ORDER BY wake_at LIMIT $3";

const LIVE: &str = "
SELECT kind, version, state, parked, count(*) FROM antiphon_saga
 WHERE state < 2 GROUP BY kind, version, state, parked ORDER BY kind, version, state, parked";

const FORGET: &str = "
DELETE FROM antiphon_saga WHERE id IN
    (SELECT id FROM antiphon_saga WHERE state >= 2 AND updated_at < $1
      LIMIT $2 FOR UPDATE SKIP LOCKED)";

impl SagaStore for PostgresStore {
    async fn insert(&self, connection: &mut Connection, row: &SagaRow) -> Result<bool, StoreError> {
        let inserted = sqlx::query(INSERT)
            .bind(uuid(row.id))
            .bind(&row.kind)
            .bind(&row.correlation)
            .bind(i64::from(row.version))
            .bind(i32::from(row.state.number()))
            .bind(row.parked)
            .bind(row.revision)
            .bind(row.wake_at.map(Timestamp::as_micros))
            .bind(number(SagaRow::lane(row.id)))
            .bind(row.data.as_ref())
            .bind(&row.progress)
            .bind(row.created_at.as_micros())
            .bind(row.updated_at.as_micros())
            .execute(&mut **connection)
            .await
            .map_err(store_error("inserting a saga"))?;
        Ok(inserted.rows_affected() == 1)
    }

    async fn load(
        &self,
        connection: &mut Connection,
        ids: &[SagaId],
    ) -> Result<Vec<SagaRow>, StoreError> {
        sqlx::query(LOAD)
            .bind(ids.iter().copied().map(uuid).collect::<Vec<_>>())
            .fetch_all(&mut **connection)
            .await
            .map_err(store_error("loading sagas"))?
            .iter()
            .map(read_row)
            .collect()
    }

    async fn save(&self, connection: &mut Connection, rows: &[SagaRow]) -> Result<(), StoreError> {
        for row in rows {
            // The column is NOT NULL: a row with another revision cannot be written.
            connection
                .defer(SAVE)
                .number(row.revision)
                .sql(",")
                .number(row.state.number())
                .sql(if row.parked { ",true," } else { ",false," })
                .optional(row.wake_at.map(Timestamp::as_micros))
                .sql(",")
                .bytes(&row.data)
                .sql(",")
                .text(&row.progress)?
                .sql(",")
                .number(row.updated_at.as_micros())
                .sql(",")
                .id(row.id.as_bytes())
                .sql(")");
        }
        Ok(())
    }

    async fn find(
        &self,
        connection: &mut Connection,
        kind: &str,
        correlation: &str,
    ) -> Result<Option<SagaRow>, StoreError> {
        sqlx::query(FIND)
            .bind(correlation)
            .bind(kind)
            .fetch_optional(&mut **connection)
            .await
            .map_err(store_error("finding a saga"))?
            .as_ref()
            .map(read_row)
            .transpose()
    }

    async fn due(
        &self,
        lanes: &[u32],
        now: Timestamp,
        count_max: u32,
    ) -> Result<Vec<SagaId>, StoreError> {
        let mut turn = self.bookkeeping().await?;
        let ids = self
            .answer(
                sqlx::query_scalar(DUE)
                    .bind(now.as_micros())
                    .bind(lanes.iter().copied().map(number).collect::<Vec<_>>())
                    .bind(i64::from(count_max))
                    .fetch_all(&mut *turn),
            )
            .await;
        let ids: Vec<Uuid> = turn.ended(ids).map_err(store_error("looking for due sagas"))?;
        Ok(ids.into_iter().map(saga_id).collect())
    }

    async fn live(&self) -> Result<Vec<SagaCount>, StoreError> {
        let mut turn = self.bookkeeping().await?;
        let rows = self.answer(sqlx::query(LIVE).fetch_all(&mut *turn)).await;
        let rows = turn.ended(rows).map_err(store_error("counting sagas"))?;
        rows.iter()
            .map(|row| {
                Ok(SagaCount {
                    kind: row.get(0),
                    version: read_version(row.get(1))?,
                    state: read_state(row.get(2))?,
                    parked: row.get(3),
                    count: u64::try_from(row.get::<i64, _>(4)).unwrap_or(0),
                })
            })
            .collect()
    }

    async fn list(&self, filter: &SagaFilter, count_max: u32) -> Result<Vec<SagaRow>, StoreError> {
        sqlx::query(LIST)
            .bind(filter.after.map_or_else(Uuid::nil, uuid))
            .bind(filter.kind.as_deref())
            .bind(filter.state.map(|state| i32::from(state.number())))
            .bind(filter.parked)
            .bind(i64::from(count_max))
            .fetch_all(self.reader())
            .await
            .map_err(store_error("listing sagas"))?
            .iter()
            .map(read_row)
            .collect()
    }

    async fn forget_ended(&self, before: Timestamp, count_max: u32) -> Result<u64, StoreError> {
        let mut turn = self.bookkeeping().await?;
        let forgotten = self
            .answer(
                sqlx::query(FORGET)
                    .bind(before.as_micros())
                    .bind(i64::from(count_max))
                    .execute(&mut *turn),
            )
            .await;
        let forgotten = turn.ended(forgotten).map_err(store_error("forgetting sagas"))?;
        Ok(forgotten.rows_affected())
    }
}

fn read_row(row: &PgRow) -> Result<SagaRow, StoreError> {
    Ok(SagaRow {
        id: saga_id(row.get(0)),
        kind: row.get(1),
        correlation: row.get(2),
        version: read_version(row.get(3))?,
        state: read_state(row.get(4))?,
        parked: row.get(5),
        revision: row.get(6),
        wake_at: row.get::<Option<i64>, _>(7).map(Timestamp::from_micros),
        data: Bytes::from(row.get::<Vec<u8>, _>(8)),
        progress: row.get(9),
        created_at: Timestamp::from_micros(row.get(10)),
        updated_at: Timestamp::from_micros(row.get(11)),
    })
}

pub(super) fn uuid(id: SagaId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

fn saga_id(uuid: Uuid) -> SagaId {
    SagaId::from_bytes(uuid.into_bytes())
}

fn read_version(number: i64) -> Result<u32, StoreError> {
    u32::try_from(number).map_err(|_| corrupt("the version is none"))
}

fn read_state(number: i32) -> Result<State, StoreError> {
    u8::try_from(number)
        .ok()
        .and_then(State::from_number)
        .ok_or_else(|| corrupt("a state of a newer version of this program"))
}

fn corrupt(what: &'static str) -> StoreError {
    StoreError::Failed { action: "reading a saga", source: what.into() }
}
