//! Exclusive rights with an end: the port.

use std::time::Duration;

use antiphon_core::Timestamp;

use super::{Store, StoreError};

/// The right to work on one lane, until `until`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What it is for: `outbox`, `saga-timers`.
    pub scope: String,
    /// Which lane.
    pub lane: u32,
    /// Grows with every new holder and never repeats; every write checks it.
    pub token: i64,
    /// When it ends unless renewed, by the store's clock.
    pub until: Timestamp,
}

/// Exclusive rights with an end.
///
/// 1. At any time at most one holder has a lease on a lane that the store accepts.
/// 2. A token is never given twice, also not after a restart.
/// 3. An expired lease can be taken by anybody; a live one by nobody else.
/// 4. `instances` counts every owner that asked within the last `ttl` and did not leave, once.
pub trait LeaseStore: Store {
    /// Takes free or expired lanes of `scope` out of `0..lanes`, at most `count_max`, for `ttl`.
    ///
    /// # Errors
    /// The store fails.
    fn acquire(
        &self,
        scope: &str,
        lanes: u32,
        count_max: u32,
        owner: &str,
        ttl: Duration,
    ) -> impl Future<Output = Result<Vec<Lease>, StoreError>> + Send;

    /// Renews leases; those that were lost are missing from the answer. An expired lease that
    /// nobody took is renewed.
    ///
    /// # Errors
    /// The store fails.
    fn renew(
        &self,
        leases: &[Lease],
        ttl: Duration,
    ) -> impl Future<Output = Result<Vec<Lease>, StoreError>> + Send;

    /// Gives leases back. Lost ones are ignored.
    ///
    /// # Errors
    /// The store fails.
    fn release(&self, leases: &[Lease]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// How many instances hold or recently wanted lanes of `scope`, this one included: for sharing
    /// lanes fairly. Seen within the last `ttl`.
    ///
    /// # Errors
    /// The store fails.
    fn instances(
        &self,
        scope: &str,
        owner: &str,
        ttl: Duration,
    ) -> impl Future<Output = Result<u32, StoreError>> + Send;

    /// `owner` no longer wants lanes of `scope`: gives back what it holds, and is no longer counted
    /// by [`instances`](Self::instances), so that the others take over without waiting.
    ///
    /// # Errors
    /// The store fails.
    fn leave(
        &self,
        scope: &str,
        owner: &str,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}
