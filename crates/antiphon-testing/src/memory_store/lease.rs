//! The lease port.

use std::time::Duration;

use antiphon_outbox::{Lease, LeaseStore, StoreError};

use super::state::Holder;
use super::{MemoryStore, Point};

impl LeaseStore for MemoryStore {
    async fn acquire(
        &self,
        scope: &str,
        lanes: u32,
        count_max: u32,
        owner: &str,
        ttl: Duration,
    ) -> Result<Vec<Lease>, StoreError> {
        let now = self.clock.now();
        self.call(Point::Acquire, |state| {
            let is_free = |holder: Option<&Holder>| holder.is_none_or(|holder| holder.until <= now);
            let free: Vec<u32> = (0..lanes)
                .filter(|lane| is_free(state.leases.get(&(scope.to_owned(), *lane))))
                .take(usize::try_from(count_max).unwrap_or(usize::MAX))
                .collect();
            let take = |lane| {
                let token = state.next_token();
                let until = now + ttl;
                let holder = Holder { token, owner: owner.to_owned(), until };
                state.leases.insert((scope.to_owned(), lane), holder);
                Lease { scope: scope.to_owned(), lane, token, until }
            };
            Ok(free.into_iter().map(take).collect())
        })
        .await
    }

    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        let until = self.clock.now() + ttl;
        self.call(Point::Renew, |state| {
            let mut renewed = Vec::new();
            for lease in leases {
                let holder = state.leases.get_mut(&(lease.scope.clone(), lease.lane));
                if let Some(holder) = holder.filter(|holder| holder.token == lease.token) {
                    holder.until = until;
                    renewed.push(Lease { until, ..lease.clone() });
                }
            }
            Ok(renewed)
        })
        .await
    }

    async fn release(&self, leases: &[Lease]) -> Result<(), StoreError> {
        self.call(Point::Release, |state| {
            for lease in leases {
                let place = (lease.scope.clone(), lease.lane);
                if state.leases.get(&place).is_some_and(|holder| holder.token == lease.token) {
                    state.leases.remove(&place);
                }
            }
            Ok(())
        })
        .await
    }

    async fn instances(&self, scope: &str, owner: &str, ttl: Duration) -> Result<u32, StoreError> {
        let now = self.clock.now();
        self.call(Point::Instances, |state| {
            state.instances.insert((scope.to_owned(), owner.to_owned()), now);
            state.instances.retain(|_, seen| *seen + ttl > now);
            let count = state.instances.keys().filter(|(of, _)| of == scope).count();
            Ok(u32::try_from(count).unwrap_or(u32::MAX))
        })
        .await
    }

    async fn leave(&self, scope: &str, owner: &str) -> Result<(), StoreError> {
        self.call(Point::Leave, |state| {
            state.instances.remove(&(scope.to_owned(), owner.to_owned()));
            state.leases.retain(|(of, _), holder| of != scope || holder.owner != owner);
            Ok(())
        })
        .await
    }
}
