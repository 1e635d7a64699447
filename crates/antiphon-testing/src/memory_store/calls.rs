//! The port for stored answers.

use antiphon_core::Timestamp;
use antiphon_outbox::{CallStore, StoreError, StoredCall};

use super::state::{Key, Value};
use super::{Connection, MemoryStore, Point, hook};

impl CallStore for MemoryStore {
    async fn recall(
        &self,
        connection: &mut Connection,
        method: &str,
        key: &str,
    ) -> Result<Option<StoredCall>, StoreError> {
        let fault = hook::before(&*self.hook, Point::Recall).await?;
        let found = connection.value(&Key::Answer(method.to_owned(), key.to_owned()));
        hook::after(fault, Point::Recall).await?;
        Ok(match found {
            Some(Value::Answer(call, _)) => Some(call),
            _ => None,
        })
    }

    async fn remember(
        &self,
        connection: &mut Connection,
        method: &str,
        key: &str,
        call: &StoredCall,
    ) -> Result<(), StoreError> {
        let fault = hook::before(&*self.hook, Point::Remember).await?;
        let place = Key::Answer(method.to_owned(), key.to_owned());
        connection.lock(place.clone()).await?;
        if connection.value(&place).is_some() {
            return Err(StoreError::Busy("the call was answered meanwhile".into()));
        }
        connection.write(place, Value::Answer(call.clone(), self.clock.now()));
        hook::after(fault, Point::Remember).await
    }

    async fn forget(&self, before: Timestamp) -> Result<u64, StoreError> {
        self.call(Point::Forget, |state| {
            let count = state.committed.len();
            state.committed.retain(|_, value| match value {
                Value::Answer(_, at) => *at >= before,
                _ => true,
            });
            Ok((count - state.committed.len()) as u64)
        })
        .await
    }
}
