//! The port for sagas.

use std::collections::BTreeMap;

use antiphon_core::Timestamp;
use antiphon_outbox::StoreError;
use antiphon_saga::{SagaCount, SagaFilter, SagaId, SagaRow, SagaStore};

use super::state::{Key, State, Value};
use super::{Connection, MemoryStore, Point, hook};

impl State {
    fn sagas(&self) -> impl Iterator<Item = &SagaRow> {
        self.committed.values().filter_map(|value| match value {
            Value::Saga(row) => Some(row),
            _ => None,
        })
    }
}

impl Connection {
    fn saga(&self, id: SagaId) -> Option<SagaRow> {
        match self.value(&Key::Saga(id)) {
            Some(Value::Saga(row)) => Some(row),
            _ => None,
        }
    }
}

impl SagaStore for MemoryStore {
    async fn insert(&self, connection: &mut Connection, row: &SagaRow) -> Result<bool, StoreError> {
        let fault = hook::before(&*self.hook, Point::Insert).await?;
        let unique = Key::SagaOf(row.kind.clone(), row.correlation.clone());
        connection.lock(unique.clone()).await?;
        let is_new = connection.value(&unique).is_none();
        if is_new {
            connection.lock(Key::Saga(row.id)).await?;
            connection.write(unique, Value::SagaOf(row.id));
            connection.write(Key::Saga(row.id), Value::Saga(row.clone()));
        }
        hook::after(fault, Point::Insert).await?;
        Ok(is_new)
    }

    async fn load(
        &self,
        connection: &mut Connection,
        ids: &[SagaId],
    ) -> Result<Vec<SagaRow>, StoreError> {
        let fault = hook::before(&*self.hook, Point::Load).await?;
        // No lock: two that change one saga find out when they save.
        let rows = ids.iter().filter_map(|id| connection.saga(*id)).collect();
        hook::after(fault, Point::Load).await?;
        Ok(rows)
    }

    async fn save(&self, connection: &mut Connection, rows: &[SagaRow]) -> Result<(), StoreError> {
        let fault = hook::before(&*self.hook, Point::Save).await?;
        for row in rows {
            connection.lock(Key::Saga(row.id)).await?;
            if connection.saga(row.id).is_none_or(|stored| stored.revision != row.revision) {
                return Err(StoreError::Busy("the saga was saved meanwhile".into()));
            }
            let saved = SagaRow { revision: row.revision + 1, ..row.clone() };
            connection.write(Key::Saga(row.id), Value::Saga(saved));
        }
        hook::after(fault, Point::Save).await
    }

    async fn find(
        &self,
        connection: &mut Connection,
        kind: &str,
        correlation: &str,
    ) -> Result<Option<SagaRow>, StoreError> {
        let fault = hook::before(&*self.hook, Point::Find).await?;
        let found = match connection.value(&Key::SagaOf(kind.to_owned(), correlation.to_owned())) {
            Some(Value::SagaOf(id)) => connection.saga(id),
            _ => None,
        };
        hook::after(fault, Point::Find).await?;
        Ok(found)
    }

    async fn due(
        &self,
        lanes: &[u32],
        now: Timestamp,
        count_max: u32,
    ) -> Result<Vec<SagaId>, StoreError> {
        self.call(Point::Due, |state| {
            let mut due: Vec<(Timestamp, SagaId)> = state
                .sagas()
                .filter(|row| lanes.contains(&SagaRow::lane(row.id)))
                .filter_map(|row| Some((row.wake_at?, row.id)))
                .filter(|(wake_at, _)| *wake_at <= now)
                .collect();
            due.sort_unstable();
            due.truncate(usize::try_from(count_max).unwrap_or(usize::MAX));
            Ok(due.into_iter().map(|(_, id)| id).collect())
        })
        .await
    }

    async fn live(&self) -> Result<Vec<SagaCount>, StoreError> {
        self.call(Point::Live, |state| {
            let mut counts = BTreeMap::new();
            for row in state.sagas().filter(|row| !row.state.is_ended()) {
                let of = (row.kind.clone(), row.version, row.state, row.parked);
                *counts.entry(of).or_default() += 1;
            }
            let count = |((kind, version, state, parked), count)| SagaCount {
                kind,
                version,
                state,
                parked,
                count,
            };
            Ok(counts.into_iter().map(count).collect())
        })
        .await
    }

    async fn list(&self, filter: &SagaFilter, count_max: u32) -> Result<Vec<SagaRow>, StoreError> {
        let wanted = |row: &&SagaRow| {
            filter.kind.as_ref().is_none_or(|kind| *kind == row.kind)
                && filter.state.is_none_or(|state| state == row.state)
                && (row.parked || !filter.parked)
                && filter.after.is_none_or(|after| row.id > after)
        };
        self.call(Point::List, |state| {
            // The map is in the order of the ids.
            let count = usize::try_from(count_max).unwrap_or(usize::MAX);
            Ok(state.sagas().filter(wanted).take(count).cloned().collect())
        })
        .await
    }

    async fn forget_ended(&self, before: Timestamp, count_max: u32) -> Result<u64, StoreError> {
        self.call(Point::ForgetEnded, |state| {
            let ended = |row: &&SagaRow| row.state.is_ended() && row.updated_at < before;
            let count = usize::try_from(count_max).unwrap_or(usize::MAX);
            let old: Vec<SagaRow> = state.sagas().filter(ended).take(count).cloned().collect();
            for row in &old {
                state.committed.remove(&Key::Saga(row.id));
                state.committed.remove(&Key::SagaOf(row.kind.clone(), row.correlation.clone()));
            }
            Ok(old.len() as u64)
        })
        .await
    }
}
