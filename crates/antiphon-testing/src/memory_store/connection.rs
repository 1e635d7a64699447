//! An open transaction: what it has written and what it has locked.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use antiphon_messaging::Message;
use antiphon_outbox::{Seq, StoreError, outbox_lane};
use bytes::Bytes;

use super::MemoryStore;
use super::state::{Committed, Handled, HandledTotals, Key, Value};

/// How long a transaction waits for another one that writes the same row.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// An open transaction. Reads see what is committed and what it has written itself; rows that it
/// writes are locked until its end. Dropping it rolls back.
pub struct Connection {
    store: MemoryStore,
    number: u64,
    writes: BTreeMap<Key, Option<Value>>,
    locked: Vec<Key>,
    appended: Vec<(Seq, Message)>,
    handled: BTreeMap<Handled, HandledTotals>,
}

impl Connection {
    pub(super) fn new(store: MemoryStore, number: u64) -> Self {
        Self {
            store,
            number,
            writes: BTreeMap::new(),
            locked: Vec::new(),
            appended: Vec::new(),
            handled: BTreeMap::new(),
        }
    }

    /// Reads a business row.
    #[must_use]
    pub fn get(&self, table: &str, key: &str) -> Option<Bytes> {
        match self.value(&Key::Row(table.into(), key.into())) {
            Some(Value::Row(value)) => Some(value),
            _ => None,
        }
    }

    /// Reads a business row in order to write it: others that want to must wait.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when another transaction holds it for too long.
    pub async fn get_for_update(
        &mut self,
        table: &str,
        key: &str,
    ) -> Result<Option<Bytes>, StoreError> {
        self.lock(Key::Row(table.into(), key.into())).await?;
        Ok(self.get(table, key))
    }

    /// Writes a business row.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when another transaction holds it for too long.
    pub async fn put(
        &mut self,
        table: &str,
        key: &str,
        value: impl Into<Bytes>,
    ) -> Result<(), StoreError> {
        let key = Key::Row(table.into(), key.into());
        self.lock(key.clone()).await?;
        self.write(key, Value::Row(value.into()));
        Ok(())
    }

    pub(super) fn value(&self, key: &Key) -> Option<Value> {
        match self.writes.get(key) {
            Some(written) => written.clone(),
            None => self.store.state().committed.get(key).cloned(),
        }
    }

    pub(super) fn write(&mut self, key: Key, value: Value) {
        self.writes.insert(key, Some(value));
    }

    pub(super) fn remove(&mut self, key: Key) {
        self.writes.insert(key, None);
    }

    /// Waits until no other open transaction writes the row, and keeps others from it.
    pub(super) async fn lock(&mut self, key: Key) -> Result<(), StoreError> {
        let data = std::sync::Arc::clone(&self.store.data);
        let attempt = async {
            loop {
                let ended = data.ended.notified();
                tokio::pin!(ended);
                // Registers before looking, so that no end is missed.
                ended.as_mut().enable();
                if self.try_lock(&key) {
                    return;
                }
                ended.await;
            }
        };
        tokio::time::timeout(LOCK_WAIT, attempt)
            .await
            .map_err(|_| StoreError::Busy("another transaction holds the row".into()))
    }

    fn try_lock(&mut self, key: &Key) -> bool {
        let mut state = self.store.state();
        match state.locks.get(key) {
            Some(holder) => *holder == self.number,
            None => {
                state.locks.insert(key.clone(), self.number);
                self.locked.push(key.clone());
                true
            }
        }
    }

    pub(super) fn append(&mut self, messages: &[Message]) {
        let mut state = self.store.state();
        for message in messages {
            self.appended.push((state.next_seq(), message.clone()));
        }
    }

    pub(super) fn count_handled(&mut self, of: Handled) -> &mut HandledTotals {
        self.handled.entry(of).or_default()
    }

    /// Makes everything visible at once.
    pub(super) fn apply(mut self) {
        let mut state = self.store.state();
        for (key, value) in std::mem::take(&mut self.writes) {
            match value {
                Some(value) => state.committed.insert(key, value),
                None => state.committed.remove(&key),
            };
        }
        for (seq, message) in std::mem::take(&mut self.appended) {
            *state.sent.entry((message.topic.clone(), message.kind.clone())).or_default() += 1;
            state.outbox.insert(seq, Committed { lane: outbox_lane(&message), message });
        }
        for (of, counts) in std::mem::take(&mut self.handled) {
            let totals = state.handled.entry(of).or_default();
            totals.done += counts.done;
            totals.duplicates += counts.duplicates;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.store.state();
        for key in &self.locked {
            state.locks.remove(key);
        }
        drop(state);
        self.store.data.ended.notify_waiters();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("number", &self.number).finish_non_exhaustive()
    }
}
