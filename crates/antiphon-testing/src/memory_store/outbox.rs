//! The outbox port.

use antiphon_core::Timestamp;
use antiphon_messaging::Message;
use antiphon_outbox::{
    Buried, Confirmation, Lease, OutboxRow, OutboxStore, Position, SentCount, Seq, StoreError,
};

use super::state::State;
use super::{Connection, MemoryStore, Point, hook};

impl State {
    /// Whether the lease is still the newest on its lane.
    fn accepts(&self, lease: &Lease) -> bool {
        self.leases
            .get(&(lease.scope.clone(), lease.lane))
            .is_some_and(|holder| holder.token == lease.token)
    }
}

impl OutboxStore for MemoryStore {
    async fn append(
        &self,
        connection: &mut Connection,
        messages: &[Message],
    ) -> Result<(), StoreError> {
        let fault = hook::before(&*self.hook, Point::Append).await?;
        connection.append(messages);
        hook::after(fault, Point::Append).await
    }

    async fn read(
        &self,
        positions: &[Position],
        due_by: Timestamp,
        count_max: u32,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        self.call(Point::Read, |state| {
            let mut rows = Vec::new();
            for position in positions {
                let found = state
                    .outbox
                    .iter()
                    .filter(|(seq, row)| {
                        row.lane == position.lane
                            && position.after.is_none_or(|after| **seq > after)
                            && row.message.not_before.is_none_or(|due| due <= due_by)
                    })
                    .take(usize::try_from(count_max).unwrap_or(usize::MAX));
                rows.extend(found.map(|(seq, row)| OutboxRow {
                    lane: row.lane,
                    seq: *seq,
                    message: row.message.clone(),
                }));
            }
            Ok(rows)
        })
        .await
    }

    async fn confirm(&self, confirmations: &[Confirmation]) -> Result<Vec<u32>, StoreError> {
        self.call(Point::Confirm, |state| {
            let mut lost = Vec::new();
            for confirmation in confirmations {
                if state.accepts(&confirmation.lease) {
                    for seq in &confirmation.rows {
                        state.outbox.remove(seq);
                    }
                } else {
                    lost.push(confirmation.lease.lane);
                }
            }
            Ok(lost)
        })
        .await
    }

    async fn bury(&self, lease: &Lease, row: Seq, reason: &str) -> Result<(), StoreError> {
        let at = self.clock.now();
        self.call(Point::Bury, |state| {
            if !state.accepts(lease) {
                return Err(StoreError::Fenced { scope: lease.scope.clone(), lane: lease.lane });
            }
            if let Some(row) = state.outbox.remove(&row) {
                let reason = reason.to_owned();
                state.buried.push(Buried { message: row.message, reason, at });
            }
            Ok(())
        })
        .await
    }

    async fn buried(&self, count_max: u32) -> Result<Vec<Buried>, StoreError> {
        let count = usize::try_from(count_max).unwrap_or(usize::MAX);
        self.call(Point::Buried, |state| {
            Ok(state.buried.iter().rev().take(count).cloned().collect())
        })
        .await
    }

    async fn backlog(&self) -> Result<(u64, Option<Timestamp>), StoreError> {
        self.call(Point::Backlog, |state| {
            let oldest = state.outbox.values().map(|row| row.message.time).min();
            Ok((state.outbox.len() as u64, oldest))
        })
        .await
    }

    async fn sent(&self) -> Result<Vec<SentCount>, StoreError> {
        self.call(Point::Sent, |state| {
            let is_of = |message: &Message, topic: &str, kind: &str| {
                message.topic == topic && message.kind == kind
            };
            let count = |(topic, kind): &(String, String), committed: u64| {
                let waiting = state.outbox.values().map(|row| &row.message);
                let buried = state.buried.iter().map(|buried| &buried.message);
                SentCount {
                    waiting: waiting.filter(|m| is_of(m, topic, kind)).count() as u64,
                    buried: buried.filter(|m| is_of(m, topic, kind)).count() as u64,
                    topic: topic.clone(),
                    kind: kind.clone(),
                    committed,
                }
            };
            Ok(state.sent.iter().map(|(of, committed)| count(of, *committed)).collect())
        })
        .await
    }
}
