//! The port for the barrier of sagas.

use antiphon_core::Timestamp;
use antiphon_outbox::StoreError;
use antiphon_saga::{BarrierKey, BarrierStore, Passage, Side, StoredReply};

use super::state::{Key, Passed, Value};
use super::{Connection, MemoryStore, Point, hook};

impl Connection {
    async fn passed(&mut self, key: &BarrierKey) -> Result<Option<Passed>, StoreError> {
        let key = Key::Barrier(key.clone());
        self.lock(key.clone()).await?;
        Ok(match self.value(&key) {
            Some(Value::Barrier(passed)) => Some(passed),
            _ => None,
        })
    }

    fn note_passed(&mut self, key: &BarrierKey, at: Timestamp, blocked: bool) {
        let passed = Passed { at, blocked, answer: None };
        self.write(Key::Barrier(key.clone()), Value::Barrier(passed));
    }

    async fn pass(&mut self, key: &BarrierKey, now: Timestamp) -> Result<Passage, StoreError> {
        // Both sides are locked in the same order by everybody.
        let action = BarrierKey { side: Side::Action, ..key.clone() };
        let done = self.passed(&action).await?;
        if key.side == Side::Action {
            return Ok(match done {
                Some(Passed { blocked: true, .. }) => Passage::Blocked,
                Some(passed) => Passage::Repeated(passed.answer),
                None => {
                    self.note_passed(key, now, false);
                    Passage::First
                }
            });
        }
        if let Some(passed) = self.passed(key).await? {
            return Ok(Passage::Repeated(passed.answer));
        }
        self.note_passed(key, now, false);
        Ok(match done {
            None => {
                self.note_passed(&action, now, true);
                Passage::Empty
            }
            Some(Passed { blocked: true, .. }) => Passage::Empty,
            Some(Passed { answer: Some(StoredReply::Refused { .. }), .. }) => Passage::Empty,
            Some(_) => Passage::First,
        })
    }
}

impl BarrierStore for MemoryStore {
    async fn pass(
        &self,
        connection: &mut Connection,
        key: &BarrierKey,
        now: Timestamp,
    ) -> Result<Passage, StoreError> {
        let fault = hook::before(&*self.hook, Point::Pass).await?;
        let passage = connection.pass(key, now).await?;
        hook::after(fault, Point::Pass).await?;
        Ok(passage)
    }

    async fn answer(
        &self,
        connection: &mut Connection,
        key: &BarrierKey,
        reply: &StoredReply,
    ) -> Result<(), StoreError> {
        let fault = hook::before(&*self.hook, Point::Answer).await?;
        if let Some(passed) = connection.passed(key).await? {
            let passed = Passed { answer: Some(reply.clone()), ..passed };
            connection.write(Key::Barrier(key.clone()), Value::Barrier(passed));
        }
        hook::after(fault, Point::Answer).await
    }

    async fn retract(
        &self,
        connection: &mut Connection,
        key: &BarrierKey,
    ) -> Result<(), StoreError> {
        let fault = hook::before(&*self.hook, Point::Retract).await?;
        let key = Key::Barrier(key.clone());
        connection.lock(key.clone()).await?;
        connection.remove(key);
        hook::after(fault, Point::Retract).await
    }

    async fn forget_passed(&self, before: Timestamp, count_max: u32) -> Result<u64, StoreError> {
        self.call(Point::ForgetPassed, |state| {
            let old = |value: &Value| matches!(value, Value::Barrier(passed) if passed.at < before);
            let count = usize::try_from(count_max).unwrap_or(usize::MAX);
            let keys: Vec<Key> = state
                .committed
                .iter()
                .filter(|(_, value)| old(value))
                .take(count)
                .map(|(key, _)| key.clone())
                .collect();
            for key in &keys {
                state.committed.remove(key);
            }
            Ok(keys.len() as u64)
        })
        .await
    }
}
