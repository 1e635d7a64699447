//! The inbox port.

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::Message;
use antiphon_outbox::{HandledCount, InboxEntry, InboxStore, StoreError};

use super::state::{Key, Value};
use super::{Connection, MemoryStore, Point, hook};

fn is_before(id: MessageId, horizon: Timestamp) -> bool {
    id.made_at().is_none_or(|made| made < horizon)
}

impl InboxStore for MemoryStore {
    async fn enter(
        &self,
        connection: &mut Connection,
        consumer: &str,
        messages: &[&Message],
    ) -> Result<Vec<InboxEntry>, StoreError> {
        let fault = hook::before(&*self.hook, Point::Enter).await?;
        let mut entries = Vec::with_capacity(messages.len());
        for message in messages {
            if is_before(message.id, self.state().horizon) {
                entries.push(InboxEntry::BeyondHorizon);
                continue;
            }
            let key = Key::Entered(consumer.to_owned(), message.id);
            connection.lock(key.clone()).await?;
            let of = (consumer.to_owned(), message.topic.clone(), message.kind.clone());
            entries.push(if connection.value(&key).is_some() {
                connection.count_handled(of).duplicates += 1;
                InboxEntry::Duplicate
            } else {
                connection.write(key, Value::Entered);
                connection.count_handled(of).done += 1;
                InboxEntry::New
            });
        }
        hook::after(fault, Point::Enter).await?;
        Ok(entries)
    }

    async fn expire(&self, horizon: Timestamp) -> Result<u64, StoreError> {
        self.call(Point::Expire, |state| {
            state.horizon = state.horizon.max(horizon);
            let (horizon, before) = (state.horizon, state.committed.len());
            state.committed.retain(|key, _| match key {
                Key::Entered(_, id) => !is_before(*id, horizon),
                _ => true,
            });
            Ok((before - state.committed.len()) as u64)
        })
        .await
    }

    async fn handled(&self) -> Result<Vec<HandledCount>, StoreError> {
        self.call(Point::Handled, |state| {
            let mut counts = Vec::new();
            for ((consumer, topic, kind), totals) in &state.handled {
                counts.push(HandledCount {
                    consumer: consumer.clone(),
                    topic: topic.clone(),
                    kind: kind.clone(),
                    done: totals.done,
                    duplicates: totals.duplicates,
                });
            }
            Ok(counts)
        })
        .await
    }
}
