//! The ports that a store adapter implements, and their rules. `antiphon-testing` has one test per
//! rule; every adapter runs them all.

use std::time::Duration;

use antiphon_core::{BoxError, MessageId, Timestamp};
use antiphon_messaging::Message;
use bytes::Bytes;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another transaction is in the way; trying the whole transaction again will do.
    #[error("the database is busy: {0}")]
    Busy(#[source] BoxError),
    /// The exclusive right is gone: another holder has a newer token. Nothing was changed.
    #[error("the lease on {scope}/{lane} was lost to another instance")]
    Fenced {
        /// What the lease was for.
        scope: String,
        /// Which lane.
        lane: u32,
    },
    /// The database cannot be reached or fails.
    #[error("{action} failed: {source}")]
    Failed {
        /// What was attempted.
        action: &'static str,
        /// The cause.
        #[source]
        source: BoxError,
    },
}

/// Why a commit was not confirmed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// Nothing was written.
    #[error("not committed: {0}")]
    RolledBack(#[source] StoreError),
    /// Nobody knows. Redelivery or the caller's retry with the same key decides.
    #[error("the outcome of the commit is unknown: {0}")]
    Unknown(#[source] BoxError),
}

/// Keeps rows.
///
/// 1. What happens on a `Connection` becomes visible to others at `commit`, all of it or nothing.
/// 2. Dropping a `Connection` rolls back.
/// 3. After `commit` returns `Ok`, the rows survive the end of the process.
/// 4. `commit` answers [`CommitError::RolledBack`] only when nothing was written.
pub trait Store: Clone + Send + Sync + 'static {
    /// An open transaction; what user code runs its statements on.
    type Connection: Send + 'static;

    /// Opens a transaction that may write.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when no turn came within the store's own limit.
    fn begin(&self) -> impl Future<Output = Result<Self::Connection, StoreError>> + Send;

    /// Commits.
    ///
    /// # Errors
    /// See [`CommitError`].
    fn commit(
        &self,
        connection: Self::Connection,
    ) -> impl Future<Output = Result<(), CommitError>> + Send;

    /// The time by which leases, timers and horizons are decided: the database's where it has one.
    fn now(&self) -> Timestamp;
}

/// The position of a row in its lane; grows with commit order per key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub i64);

/// A committed message that is not published yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its position.
    pub seq: Seq,
    /// How often publishing it failed for reasons of its own.
    pub failures: u32,
    /// The message.
    pub message: Message,
}

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

    /// Renews leases; those that were lost are missing from the answer.
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
}

/// Messages that were committed with business rows.
///
/// 1. `append` makes them part of the transaction.
/// 2. Rows of one key are read in the order in which their transactions committed, and none is
///    skipped, however late its transaction commits.
/// 3. `confirm` and `bury` change nothing when the lease was lost.
/// 4. A buried row is kept with its reason, and no longer read.
pub trait OutboxStore: LeaseStore {
    /// Writes messages as the last statement of the transaction. The lane of a message is
    /// [`antiphon_messaging::lane_of`] its key; a message without a key goes to any lane.
    ///
    /// # Errors
    /// The store fails; the transaction must be rolled back.
    fn append(
        &self,
        connection: &mut Self::Connection,
        messages: &[Message],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Reads rows of a leased lane after `after`, in order, at most `count_max`. Takes no locks.
    ///
    /// # Errors
    /// The store fails.
    fn read(
        &self,
        lane: u32,
        after: Option<Seq>,
        count_max: u32,
    ) -> impl Future<Output = Result<Vec<OutboxRow>, StoreError>> + Send;

    /// Removes rows that the broker has confirmed.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when the lease was lost: nothing was removed.
    fn confirm(
        &self,
        lease: &Lease,
        rows: &[Seq],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Puts a row aside that the broker will never take.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when the lease was lost: nothing was changed.
    fn bury(
        &self,
        lease: &Lease,
        row: Seq,
        reason: &str,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// How many rows wait, and since when the oldest does.
    ///
    /// # Errors
    /// The store fails.
    fn backlog(
        &self,
    ) -> impl Future<Output = Result<(u64, Option<Timestamp>), StoreError>> + Send;
}

/// What the inbox says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboxEntry {
    /// Not seen before: handle it.
    New,
    /// Handled before: only acknowledge.
    Duplicate,
    /// Older than what the inbox remembers: nobody can say; never handle it.
    BeyondHorizon,
}

/// Remembers which messages a consumer has handled.
///
/// 1. `enter` is part of the transaction: it is undone with it.
/// 2. Of two transactions with the same message and consumer, one gets `New` and the other, after
///    the first has committed, `Duplicate`.
/// 3. A message older than the horizon is `BeyondHorizon`, whether or not it was ever seen; `expire`
///    moves the horizon and forgets in one step.
pub trait InboxStore: Store {
    /// Notes that `consumer` handles `message`.
    ///
    /// # Errors
    /// The store fails; the transaction must be rolled back.
    fn enter(
        &self,
        connection: &mut Self::Connection,
        consumer: &str,
        message: MessageId,
    ) -> impl Future<Output = Result<InboxEntry, StoreError>> + Send;

    /// Moves the horizon to `horizon` (never back), and forgets what lies before it.
    ///
    /// # Errors
    /// The store fails.
    fn expire(&self, horizon: Timestamp) -> impl Future<Output = Result<u64, StoreError>> + Send;
}

/// The stored answer of an idempotent call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCall {
    /// A hash of the request: the same key with another request is an error of the caller.
    pub request_hash: u64,
    /// The encoded answer.
    pub answer: Bytes,
}

/// Remembers answers by the caller's idempotency key.
///
/// 1. `remember` is part of the transaction that did the work.
/// 2. Of two transactions with the same method and key, the second fails with
///    [`StoreError::Busy`] or finds the answer of the first.
pub trait CallStore: Store {
    /// The answer to an earlier call with this method and key.
    ///
    /// # Errors
    /// The store fails.
    fn recall(
        &self,
        connection: &mut Self::Connection,
        method: &str,
        key: &str,
    ) -> impl Future<Output = Result<Option<StoredCall>, StoreError>> + Send;

    /// Stores the answer with the work.
    ///
    /// # Errors
    /// The store fails; the transaction must be rolled back.
    fn remember(
        &self,
        connection: &mut Self::Connection,
        method: &str,
        key: &str,
        call: &StoredCall,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}
