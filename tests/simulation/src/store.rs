//! The store as one node sees it: the store in memory, with the bugs that a mutant injects, and an
//! eye on who may write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::Timestamp;
use antiphon_messaging::Message;
use antiphon_outbox::{
    Buried, CommitError, Confirmation, HandledCount, InboxEntry, InboxStore, Lease, LeaseStore,
    OutboxRow, OutboxStore, Position, SentCount, Seq, Store, StoreError,
};
use antiphon_saga::{
    BarrierKey, BarrierStore, Passage, SagaCount, SagaFilter, SagaId, SagaRow, SagaStore,
    StoredReply,
};
use antiphon_testing::MemoryStore;
use antiphon_testing::memory_store::Connection;
use parking_lot::Mutex;

use crate::Mutant;
use crate::faults::{NodeFaults, NodeHook};
use crate::mutants;

/// What all nodes together have seen of one store.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The newest lease of each scope and lane.
    pub(crate) newest: BTreeMap<(String, u32), i64>,
    /// The last confirmed position of each lane.
    pub(crate) confirmed: BTreeMap<u32, Seq>,
}

/// The store of one service, opened by one node.
#[derive(Clone)]
pub(crate) struct NodeStore {
    pub(crate) inner: MemoryStore,
    pub(crate) node: Arc<NodeFaults>,
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) mutant: Option<Mutant>,
}

impl NodeStore {
    pub(crate) fn open(
        inner: &MemoryStore,
        seen: &Arc<Mutex<Seen>>,
        node: &Arc<NodeFaults>,
        mutant: Option<Mutant>,
    ) -> Self {
        Self {
            inner: inner.opened_with(Arc::new(NodeHook(Arc::clone(node)))),
            node: Arc::clone(node),
            seen: Arc::clone(seen),
            mutant,
        }
    }

    fn is_mutant(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Notes new leases. A token must never go backwards.
    fn note_leases(&self, leases: &[Lease]) {
        let mut seen = self.seen.lock();
        for lease in leases {
            let place = (lease.scope.clone(), lease.lane);
            let newest = seen.newest.entry(place).or_insert(lease.token);
            if *newest > lease.token {
                let text = format!("the token of {}/{} went backwards", lease.scope, lease.lane);
                self.node.faults.broken(text);
            }
            *newest = lease.token;
        }
    }

    fn is_stale(&self, lease: &Lease) -> bool {
        let newest = self.seen.lock().newest.get(&(lease.scope.clone(), lease.lane)).copied();
        newest.is_some_and(|newest| newest > lease.token)
    }
}

impl Store for NodeStore {
    type Connection = Connection;

    async fn begin(&self) -> Result<Connection, StoreError> {
        self.node.stall().await;
        self.inner.begin().await
    }

    async fn commit(&self, connection: Connection) -> Result<(), CommitError> {
        self.node.stall().await;
        self.inner.commit(connection).await
    }

    fn now(&self) -> Timestamp {
        self.inner.now()
    }
}

impl LeaseStore for NodeStore {
    async fn acquire(
        &self,
        scope: &str,
        lanes: u32,
        count_max: u32,
        owner: &str,
        ttl: Duration,
    ) -> Result<Vec<Lease>, StoreError> {
        self.node.stall().await;
        let leases = self.inner.acquire(scope, lanes, count_max, owner, ttl).await?;
        self.note_leases(&leases);
        Ok(leases)
    }

    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        self.node.stall().await;
        let renewed = self.inner.renew(leases, ttl).await?;
        let lost = leases.len().saturating_sub(renewed.len()) as u64;
        self.node.faults.bite(|bites| bites.leases_lost += lost);
        Ok(renewed)
    }

    async fn release(&self, leases: &[Lease]) -> Result<(), StoreError> {
        self.inner.release(leases).await
    }

    async fn instances(&self, scope: &str, owner: &str, ttl: Duration) -> Result<u32, StoreError> {
        self.inner.instances(scope, owner, ttl).await
    }

    async fn leave(&self, scope: &str, owner: &str) -> Result<(), StoreError> {
        self.inner.leave(scope, owner).await
    }
}

impl OutboxStore for NodeStore {
    async fn append(
        &self,
        connection: &mut Connection,
        messages: &[Message],
    ) -> Result<(), StoreError> {
        if self.is_mutant(Mutant::EmitOutside) {
            let mut own = self.inner.begin().await?;
            self.inner.append(&mut own, messages).await?;
            let failed = |error: CommitError| StoreError::Failed {
                action: "emitting outside of the transaction",
                source: error.into(),
            };
            return self.inner.commit(own).await.map_err(failed);
        }
        if self.is_mutant(Mutant::CompensateKnown) {
            let messages = mutants::without_unknown_undos(&self.inner, messages).await?;
            return self.inner.append(connection, &messages).await;
        }
        self.inner.append(connection, messages).await
    }

    async fn read(
        &self,
        positions: &[Position],
        due_by: Timestamp,
        count_max: u32,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        self.node.stall().await;
        let mut rows = self.inner.read(positions, due_by, count_max).await?;
        if self.is_mutant(Mutant::CursorSkip) {
            let seen = self.seen.lock();
            rows.retain(|row| seen.confirmed.get(&row.lane).is_none_or(|last| row.seq > *last));
        }
        Ok(rows)
    }

    async fn confirm(&self, confirmations: &[Confirmation]) -> Result<Vec<u32>, StoreError> {
        self.node.stall().await;
        let stale: Vec<u32> = confirmations
            .iter()
            .filter(|confirmation| self.is_stale(&confirmation.lease))
            .map(|confirmation| confirmation.lease.lane)
            .collect();
        let forged = self.is_mutant(Mutant::UnfencedLease).then(|| self.forge(confirmations));
        let lost = self.inner.confirm(forged.as_deref().unwrap_or(confirmations)).await?;
        self.node.faults.bite(|bites| bites.leases_lost += lost.len() as u64);
        if let Some(lane) = stale.iter().find(|lane| !lost.contains(lane)) {
            let text = format!("outbox lane {lane} was changed by a holder that had lost it");
            self.node.faults.broken(text);
        }
        let mut seen = self.seen.lock();
        for confirmation in confirmations {
            if let Some(last) = confirmation.rows.iter().max() {
                let place = seen.confirmed.entry(confirmation.lease.lane).or_insert(*last);
                *place = (*place).max(*last);
            }
        }
        Ok(lost)
    }

    async fn bury(&self, lease: &Lease, row: Seq, reason: &str) -> Result<(), StoreError> {
        self.inner.bury(lease, row, reason).await
    }

    async fn buried(&self, count_max: u32) -> Result<Vec<Buried>, StoreError> {
        self.inner.buried(count_max).await
    }

    async fn backlog(&self) -> Result<(u64, Option<Timestamp>), StoreError> {
        self.inner.backlog().await
    }

    async fn sent(&self) -> Result<Vec<SentCount>, StoreError> {
        self.inner.sent().await
    }
}

impl NodeStore {
    /// The same confirmations under whatever leases are valid now.
    fn forge(&self, confirmations: &[Confirmation]) -> Vec<Confirmation> {
        let seen = self.seen.lock();
        let forge = |confirmation: &Confirmation| {
            let mut forged = confirmation.clone();
            let place = (forged.lease.scope.clone(), forged.lease.lane);
            if let Some(newest) = seen.newest.get(&place) {
                forged.lease.token = *newest;
            }
            forged
        };
        confirmations.iter().map(forge).collect()
    }
}

impl InboxStore for NodeStore {
    async fn enter(
        &self,
        connection: &mut Connection,
        consumer: &str,
        messages: &[&Message],
    ) -> Result<Vec<InboxEntry>, StoreError> {
        self.inner.enter(connection, consumer, messages).await
    }

    async fn expire(&self, horizon: Timestamp) -> Result<u64, StoreError> {
        self.inner.expire(horizon).await
    }

    async fn handled(&self) -> Result<Vec<HandledCount>, StoreError> {
        self.inner.handled().await
    }
}

impl SagaStore for NodeStore {
    async fn insert(&self, connection: &mut Connection, row: &SagaRow) -> Result<bool, StoreError> {
        self.inner.insert(connection, row).await
    }

    async fn load(
        &self,
        connection: &mut Connection,
        ids: &[SagaId],
    ) -> Result<Vec<SagaRow>, StoreError> {
        self.inner.load(connection, ids).await
    }

    async fn save(&self, connection: &mut Connection, rows: &[SagaRow]) -> Result<(), StoreError> {
        self.inner.save(connection, rows).await
    }

    async fn find(
        &self,
        connection: &mut Connection,
        kind: &str,
        correlation: &str,
    ) -> Result<Option<SagaRow>, StoreError> {
        self.inner.find(connection, kind, correlation).await
    }

    async fn due(
        &self,
        lanes: &[u32],
        now: Timestamp,
        count_max: u32,
    ) -> Result<Vec<SagaId>, StoreError> {
        self.node.stall().await;
        self.inner.due(lanes, now, count_max).await
    }

    async fn live(&self) -> Result<Vec<SagaCount>, StoreError> {
        self.inner.live().await
    }

    async fn list(&self, filter: &SagaFilter, count: u32) -> Result<Vec<SagaRow>, StoreError> {
        self.inner.list(filter, count).await
    }

    async fn forget_ended(&self, before: Timestamp, count_max: u32) -> Result<u64, StoreError> {
        self.inner.forget_ended(before, count_max).await
    }
}

impl BarrierStore for NodeStore {
    async fn pass(
        &self,
        connection: &mut Connection,
        key: &BarrierKey,
        now: Timestamp,
    ) -> Result<Passage, StoreError> {
        self.inner.pass(connection, key, now).await
    }

    async fn answer(
        &self,
        connection: &mut Connection,
        key: &BarrierKey,
        reply: &StoredReply,
    ) -> Result<(), StoreError> {
        self.inner.answer(connection, key, reply).await
    }

    async fn retract(
        &self,
        connection: &mut Connection,
        key: &BarrierKey,
    ) -> Result<(), StoreError> {
        self.inner.retract(connection, key).await
    }

    async fn forget_passed(&self, before: Timestamp, count_max: u32) -> Result<u64, StoreError> {
        self.inner.forget_passed(before, count_max).await
    }
}
