//! Sagas: one row each.
//!
//! Only one transaction writes at a time, so a row that was loaded cannot be changed by another one
//! before the commit; saving goes with COMMIT therefore. A revision that does not fit after all
//! makes the statement, and with it the commit, fail.

use antiphon_core::Timestamp;
use antiphon_outbox::{Store, StoreError};
use antiphon_saga::{SagaCount, SagaFilter, SagaId, SagaRow, SagaStore, State};
use bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::connection::Connection;
use super::{SqliteStore, commit, json};
use crate::error::store_error;

const INSERT: &str = "
INSERT INTO antiphon_saga
    (id, kind, correlation, version, state, parked, revision, wake_at, lane, data, progress,
     created_at, updated_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING";

// The column is NOT NULL: a row with another revision cannot be written.
const SAVE: &str = "
UPDATE antiphon_saga
   SET revision = CASE revision WHEN ? THEN revision + 1 END,
       state = ?, parked = ?, wake_at = ?, data = ?, progress = ?, updated_at = ?
 WHERE id = ?";

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

const LOAD: &str = select!("WHERE id IN (SELECT unhex(value, '-') FROM json_each(?))");

const FIND: &str = select!("WHERE correlation = ? AND kind = ?");

const LIST: &str = select!(
    "WHERE id > ?1 AND (?2 IS NULL OR kind = ?2) AND (?3 IS NULL OR state = ?3)
       AND (parked OR NOT ?4)
     ORDER BY id LIMIT ?5"
);

const DUE: &str = "
SELECT id FROM antiphon_saga
 WHERE wake_at <= ? AND lane IN (SELECT value FROM json_each(?))
 ORDER BY wake_at LIMIT ?";

const LIVE: &str = "
SELECT kind, version, state, parked, count(*) FROM antiphon_saga
 WHERE state < 2 GROUP BY kind, version, state, parked ORDER BY kind, version, state, parked";

const FORGET: &str = "
DELETE FROM antiphon_saga WHERE id IN
    (SELECT id FROM antiphon_saga WHERE state >= 2 AND updated_at < ? LIMIT ?)";

impl SagaStore for SqliteStore {
    async fn insert(&self, connection: &mut Connection, row: &SagaRow) -> Result<bool, StoreError> {
        let inserted = sqlx::query(INSERT)
            .bind(row.id.as_bytes().as_slice())
            .bind(&row.kind)
            .bind(&row.correlation)
            .bind(row.version)
            .bind(row.state.number())
            .bind(row.parked)
            .bind(row.revision)
            .bind(row.wake_at.map(Timestamp::as_micros))
            .bind(SagaRow::lane(row.id))
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
        let ids: Vec<String> = ids.iter().map(SagaId::to_string).collect();
        sqlx::query(LOAD)
            .bind(json::array(ids.iter().map(String::as_str)))
            .fetch_all(&mut **connection)
            .await
            .map_err(store_error("loading sagas"))?
            .iter()
            .map(read_row)
            .collect()
    }

    async fn save(&self, connection: &mut Connection, rows: &[SagaRow]) -> Result<(), StoreError> {
        let deferred = connection.deferred();
        for row in rows {
            deferred.statement(SAVE);
            deferred.bind(row.revision)?;
            deferred.bind(row.state.number())?;
            deferred.bind(row.parked)?;
            deferred.bind(row.wake_at.map(Timestamp::as_micros))?;
            deferred.bind(row.data.as_ref())?;
            deferred.bind(&row.progress)?;
            deferred.bind(row.updated_at.as_micros())?;
            deferred.bind(row.id.as_bytes().as_slice())?;
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
        let ids: Vec<Vec<u8>> = sqlx::query_scalar(DUE)
            .bind(now.as_micros())
            .bind(json::array(lanes.iter().copied()))
            .bind(count_max)
            .fetch_all(self.reader())
            .await
            .map_err(store_error("looking for due sagas"))?;
        ids.into_iter().map(|id| read_id(&id)).collect()
    }

    async fn live(&self) -> Result<Vec<SagaCount>, StoreError> {
        let rows = sqlx::query(LIVE)
            .fetch_all(self.reader())
            .await
            .map_err(store_error("counting sagas"))?;
        rows.iter()
            .map(|row| {
                Ok(SagaCount {
                    kind: row.get(0),
                    version: row.get(1),
                    state: read_state(row.get(2))?,
                    parked: row.get(3),
                    count: u64::try_from(row.get::<i64, _>(4)).unwrap_or(0),
                })
            })
            .collect()
    }

    async fn list(&self, filter: &SagaFilter, count_max: u32) -> Result<Vec<SagaRow>, StoreError> {
        let after = filter.after.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        sqlx::query(LIST)
            .bind(after)
            .bind(filter.kind.as_deref())
            .bind(filter.state.map(State::number))
            .bind(filter.parked)
            .bind(count_max)
            .fetch_all(self.reader())
            .await
            .map_err(store_error("listing sagas"))?
            .iter()
            .map(read_row)
            .collect()
    }

    async fn forget_ended(&self, before: Timestamp, count_max: u32) -> Result<u64, StoreError> {
        let mut connection = self.begin().await?;
        let forgotten = sqlx::query(FORGET)
            .bind(before.as_micros())
            .bind(count_max)
            .execute(&mut *connection)
            .await
            .map_err(store_error("forgetting sagas"))?
            .rows_affected();
        commit(connection, "forgetting sagas").await?;
        Ok(forgotten)
    }
}

fn read_row(row: &SqliteRow) -> Result<SagaRow, StoreError> {
    let id: &[u8] = row.get(0);
    Ok(SagaRow {
        id: read_id(id)?,
        kind: row.get(1),
        correlation: row.get(2),
        version: row.get(3),
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

fn read_id(bytes: &[u8]) -> Result<SagaId, StoreError> {
    bytes.try_into().map(SagaId::from_bytes).map_err(|_| corrupt("the id has not 16 bytes"))
}

fn read_state(number: u8) -> Result<State, StoreError> {
    State::from_number(number).ok_or_else(|| corrupt("a state of a newer version of this program"))
}

fn corrupt(what: &'static str) -> StoreError {
    StoreError::Failed { action: "reading a saga", source: what.into() }
}
