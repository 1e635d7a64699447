//! A transactional store in memory, for tests and the simulator.
//!
//! It behaves as a database server with row locks does, at its most inconvenient: transactions
//! overlap, the numbers of outbox rows are drawn before the commit (so they become visible out of
//! order and with gaps), writers of one row wait for each other, and a [`Hook`] may make any call
//! busy, fail, lose its answer, take long, or never return.
//!
//! Deterministic: one lock, ordered maps, no randomness, no background task. Time is that of the
//! [`Clock`] it is given.

mod barrier;
mod calls;
mod connection;
mod hook;
mod inbox;
mod lease;
mod outbox;
mod saga;
mod state;

use std::fmt;
use std::sync::Arc;

use antiphon_core::{Clock, Timestamp};
use antiphon_outbox::{CommitError, Store, StoreError};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

pub use connection::Connection;
pub use hook::{Fault, Hook, NoFaults, Point};

use state::{Key, State, Value};

/// The store; clones use the same data.
#[derive(Clone)]
pub struct MemoryStore {
    data: Arc<Data>,
    clock: Clock,
    hook: Arc<dyn Hook>,
}

struct Data {
    state: Mutex<State>,
    /// Rung when a transaction ends and its locks are free.
    ended: Notify,
}

impl MemoryStore {
    /// An empty store whose time is `clock`'s.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let data = Data { state: Mutex::new(State::default()), ended: Notify::new() };
        Self { data: Arc::new(data), clock, hook: Arc::new(NoFaults) }
    }

    /// The same data, opened by another process: with faults of its own.
    #[must_use]
    pub fn opened_with(&self, hook: Arc<dyn Hook>) -> Self {
        Self { hook, ..self.clone() }
    }

    /// A committed business row.
    #[must_use]
    pub fn row(&self, table: &str, key: &str) -> Option<Bytes> {
        match self.state().committed.get(&Key::Row(table.into(), key.into())) {
            Some(Value::Row(value)) => Some(value.clone()),
            _ => None,
        }
    }

    /// All committed rows of a table, by their keys.
    #[must_use]
    pub fn rows(&self, table: &str) -> Vec<(String, Bytes)> {
        self.state()
            .committed
            .iter()
            .filter_map(|(key, value)| match (key, value) {
                (Key::Row(of, key), Value::Row(value)) if of == table => {
                    Some((key.clone(), value.clone()))
                }
                _ => None,
            })
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.data.state.lock()
    }

    /// Does `effect`, with the fault that the hook wants before or after it.
    async fn call<T>(
        &self,
        point: Point,
        effect: impl FnOnce(&mut State) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let fault = hook::before(&*self.hook, point).await?;
        let answer = effect(&mut self.state());
        hook::after(fault, point).await?;
        answer
    }
}

impl Store for MemoryStore {
    type Connection = Connection;

    async fn begin(&self) -> Result<Connection, StoreError> {
        let number = self.call(Point::Begin, |state| Ok(state.next_transaction())).await?;
        Ok(Connection::new(self.clone(), number))
    }

    async fn commit(&self, connection: Connection) -> Result<(), CommitError> {
        let fault = hook::before_commit(&*self.hook).await?;
        connection.apply();
        hook::after(fault, Point::Commit).await.map_err(|error| CommitError::Unknown(error.into()))
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Nobody waits for rows.
    fn one_writer(&self) -> bool {
        true
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("now", &self.now()).finish_non_exhaustive()
    }
}
