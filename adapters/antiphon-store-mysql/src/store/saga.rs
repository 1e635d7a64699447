//! Sagas: one row each.
//!
//! `load` locks the rows until the end of the transaction, in the order of their ids: turns of one
//! saga wait for each other instead of working in vain, and what a saga emits is in order. Saving
//! goes with COMMIT therefore. A revision that does not fit (the row was loaded by somebody else
//! than who saves it) makes the statement, and with it the commit, fail: the column takes no NULL.

use antiphon_core::Timestamp;
use antiphon_outbox::StoreError;
use antiphon_saga::{SagaCount, SagaFilter, SagaId, SagaRow, SagaStore, State};
use bytes::Bytes;
use sqlx::Row;
use sqlx::mysql::MySqlRow;

use super::MysqlStore;
use super::connection::Connection;
use crate::error::{Trouble, store_error, trouble};
use crate::sql::{Answer, Sql, count, text};

/// Reads whole rows, in the order in which [`read_row`] expects the columns.
const SELECT: &str = "SELECT id, kind, correlation, version, state, parked, revision, wake_at, data, \
                      progress, created_at, updated_at FROM antiphon_saga";

/// Sagas that one statement removes.
const FORGET_AT_ONCE: usize = 500;

impl SagaStore for MysqlStore {
    async fn insert(&self, connection: &mut Connection, row: &SagaRow) -> Result<bool, StoreError> {
        let mut sql = Sql::new(
            "INSERT INTO antiphon_saga (id, kind, correlation, version, revision, lane, created_at, \
             state, parked, wake_at, data, progress, updated_at, ended_at) VALUES (",
        );
        sql.value(row.id.as_bytes()).sql(",").value(&row.kind).sql(",").value(&row.correlation);
        sql.sql(",").number(row.version).sql(",").number(row.revision);
        sql.sql(",").number(SagaRow::lane(row.id)).sql(",").number(row.created_at.as_micros());
        sql.sql(",").number(row.state.number()).sql(",").number(row.parked).sql(",");
        sql.number_or_null(row.wake_at.map(Timestamp::as_micros)).sql(",").value(&row.data);
        sql.sql(",").value(&row.progress).sql(",").number(row.updated_at.as_micros()).sql(",");
        sql.number_or_null(ended_at(row)).sql(")");
        match connection.try_run(sql).await {
            Ok(_) => Ok(true),
            Err(error) if trouble(&error) == Trouble::Duplicate => Ok(false),
            Err(error) => Err(store_error("inserting a saga")(error)),
        }
    }

    async fn load(
        &self,
        connection: &mut Connection,
        ids: &[SagaId],
    ) -> Result<Vec<SagaRow>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut sql = Sql::new(SELECT);
        // By the primary key whatever the optimizer thinks of small tables: no other row is locked.
        sql.sql(" FORCE INDEX (PRIMARY) WHERE id IN (").list(",", ids, |sql, id| {
            sql.value(id.as_bytes());
        });
        sql.sql(") ORDER BY id FOR UPDATE");
        let answers = connection.run("loading sagas", sql).await?;
        read_rows(&answers)
    }

    async fn save(&self, connection: &mut Connection, rows: &[SagaRow]) -> Result<(), StoreError> {
        for row in rows {
            let mut sql = Sql::new("UPDATE antiphon_saga SET revision = IF(revision = ");
            sql.number(row.revision).sql(", revision + 1, NULL), state = ");
            sql.number(row.state.number()).sql(", parked = ").number(row.parked);
            sql.sql(", wake_at = ").number_or_null(row.wake_at.map(Timestamp::as_micros));
            sql.sql(", data = ").value(&row.data).sql(", progress = ").value(&row.progress);
            sql.sql(", updated_at = ").number(row.updated_at.as_micros());
            sql.sql(", ended_at = ").number_or_null(ended_at(row));
            sql.sql(" WHERE id = ").value(row.id.as_bytes());
            connection.deferred().statement(&sql);
        }
        Ok(())
    }

    async fn find(
        &self,
        connection: &mut Connection,
        kind: &str,
        correlation: &str,
    ) -> Result<Option<SagaRow>, StoreError> {
        let mut sql = Sql::new(SELECT);
        sql.sql(" WHERE correlation = ").value(correlation).sql(" AND kind = ").value(kind);
        let answers = connection.run("finding a saga", sql).await?;
        Ok(read_rows(&answers)?.pop())
    }

    async fn due(
        &self,
        lanes: &[u32],
        now: Timestamp,
        count_max: u32,
    ) -> Result<Vec<SagaId>, StoreError> {
        if lanes.is_empty() {
            return Ok(Vec::new());
        }
        let mut sql = Sql::new("SELECT id FROM antiphon_saga WHERE wake_at <= ");
        sql.number(now.as_micros()).sql(" AND lane IN (").numbers(lanes.iter().copied());
        sql.sql(") ORDER BY wake_at LIMIT ").number(count_max);
        let answers = self.ask("looking for due sagas", sql).await?;
        answers.iter().flat_map(|answer| &answer.rows).map(read_id).collect()
    }

    async fn live(&self) -> Result<Vec<SagaCount>, StoreError> {
        let sql = Sql::new(
            "SELECT kind, version, state, parked, count(*) FROM antiphon_saga WHERE state < 2 \
              GROUP BY kind, version, state, parked ORDER BY kind, version, state, parked",
        );
        let answers = self.ask("counting sagas", sql).await?;
        let rows = answers.iter().flat_map(|answer| &answer.rows);
        rows.map(|row| {
            let failed = || store_error("counting sagas");
            Ok(SagaCount {
                kind: text(row, 0).map_err(failed())?,
                version: version(row.try_get(1).map_err(failed())?)?,
                state: read_state(row.try_get(2).map_err(failed())?)?,
                parked: row.try_get::<i64, _>(3).map_err(failed())? != 0,
                count: count(row, 4).map_err(failed())?,
            })
        })
        .collect()
    }

    async fn list(&self, filter: &SagaFilter, count_max: u32) -> Result<Vec<SagaRow>, StoreError> {
        let mut sql = Sql::new(SELECT);
        sql.sql(" WHERE id > ")
            .value(filter.after.as_ref().map_or(&[][..], |id| id.as_bytes().as_slice()));
        if let Some(kind) = &filter.kind {
            sql.sql(" AND kind = ").value(kind);
        }
        if let Some(state) = filter.state {
            sql.sql(" AND state = ").number(state.number());
        }
        if filter.parked {
            sql.sql(" AND parked = 1");
        }
        sql.sql(" ORDER BY id LIMIT ").number(count_max);
        read_rows(&self.ask("listing sagas", sql).await?)
    }

    async fn forget_ended(&self, before: Timestamp, count_max: u32) -> Result<u64, StoreError> {
        let mut sql = Sql::new("SELECT id FROM antiphon_saga WHERE ended_at < ");
        sql.number(before.as_micros()).sql(" ORDER BY ended_at LIMIT ").number(count_max);
        let answers = self.ask("looking for ended sagas", sql).await?;
        let rows: Vec<&MySqlRow> = answers.iter().flat_map(|answer| &answer.rows).collect();
        let mut ids = rows.into_iter().map(read_id).collect::<Result<Vec<_>, _>>()?;
        // By their ids and in order: a range would wait for rows of transactions behind it.
        ids.sort_unstable();
        let mut forgotten = 0;
        for ids in ids.chunks(FORGET_AT_ONCE) {
            let mut sql =
                Sql::new("DELETE s FROM antiphon_saga AS s FORCE INDEX (PRIMARY) WHERE id IN (");
            sql.list(",", ids, |sql, id| {
                sql.value(id.as_bytes());
            });
            sql.sql(") AND ended_at < ").number(before.as_micros());
            let answers = self.ask("forgetting sagas", sql).await?;
            forgotten += answers.first().map_or(0, |answer| answer.affected);
        }
        Ok(forgotten)
    }
}

fn ended_at(row: &SagaRow) -> Option<i64> {
    row.state.is_ended().then(|| row.updated_at.as_micros())
}

fn read_rows(answers: &[Answer]) -> Result<Vec<SagaRow>, StoreError> {
    answers.iter().flat_map(|answer| &answer.rows).map(read_row).collect()
}

fn read_row(row: &MySqlRow) -> Result<SagaRow, StoreError> {
    let failed = || store_error("reading a saga");
    let number = |index| row.try_get::<i64, _>(index).map_err(failed());
    let wake_at: Option<i64> = row.try_get(7).map_err(failed())?;
    Ok(SagaRow {
        id: read_id(row)?,
        kind: text(row, 1).map_err(failed())?,
        correlation: text(row, 2).map_err(failed())?,
        version: version(number(3)?)?,
        state: read_state(number(4)?)?,
        parked: number(5)? != 0,
        revision: number(6)?,
        wake_at: wake_at.map(Timestamp::from_micros),
        data: Bytes::from(row.try_get::<Vec<u8>, _>(8).map_err(failed())?),
        progress: text(row, 9).map_err(failed())?,
        created_at: Timestamp::from_micros(number(10)?),
        updated_at: Timestamp::from_micros(number(11)?),
    })
}

fn read_id(row: &MySqlRow) -> Result<SagaId, StoreError> {
    let bytes: &[u8] = row.try_get(0).map_err(store_error("reading a saga"))?;
    bytes.try_into().map(SagaId::from_bytes).map_err(|_| corrupt("the id has not 16 bytes"))
}

fn version(number: i64) -> Result<u32, StoreError> {
    u32::try_from(number).map_err(|_| corrupt("the version is no number of one"))
}

fn read_state(number: i64) -> Result<State, StoreError> {
    u8::try_from(number)
        .ok()
        .and_then(State::from_number)
        .ok_or_else(|| corrupt("a state of a newer version of this program"))
}

fn corrupt(what: &'static str) -> StoreError {
    StoreError::Failed { action: "reading a saga", source: what.into() }
}
