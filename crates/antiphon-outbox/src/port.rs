//! The ports that a store adapter implements, and their rules. `antiphon-testing` has one test per
//! rule; every adapter runs them all.

mod calls;
mod inbox;
mod lease;
mod outbox;

use antiphon_core::{BoxError, Code, Finding, Status, Timestamp};

pub use calls::{CallStore, StoredCall};
pub use inbox::{HandledCount, InboxEntry, InboxStore};
pub use lease::{Lease, LeaseStore};
pub use outbox::{
    Buried, Confirmation, OutboxRow, OutboxStore, Position, SentCount, Seq, outbox_lane,
};

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

impl StoreError {
    /// Whether trying the whole transaction again will do.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        matches!(self, Self::Busy(_))
    }
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

impl CommitError {
    /// Whether nothing was written and trying the whole transaction again will do.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        matches!(self, Self::RolledBack(error) if error.is_busy())
    }
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

    /// Whether only one transaction of the database writes at a time. Where many do, and each keeps
    /// the rows that it touched locked, one transaction for several messages would lock rows in an
    /// order that no handler chose, and two such transactions would wait for each other: there each
    /// message gets its own, and more of them run side by side.
    fn one_writer(&self) -> bool {
        false
    }

    /// Whether a statement of the user, the last one that ran on the transaction, failed because
    /// other work was in its way (a deadlock, a row that stayed locked), so that doing the whole
    /// transaction again will do. The transaction is rolled back afterwards. A store in which
    /// statements do not meet other work answers `false`.
    fn met_other_work(
        &self,
        connection: &mut Self::Connection,
    ) -> impl Future<Output = bool> + Send {
        let _ = connection;
        std::future::ready(false)
    }

    /// What a person should know of the database: versions, settings that endanger what is
    /// committed, what fills up.
    fn findings(&self) -> impl Future<Output = Vec<Finding>> + Send {
        std::future::ready(Vec::new())
    }
}

impl From<StoreError> for Status {
    /// Trouble of the database is not the caller's fault: ABORTED when busy, else UNAVAILABLE.
    fn from(error: StoreError) -> Self {
        if error.is_busy() {
            Self::new(Code::Aborted, "the work is in conflict with other work; try again")
                .with_source(error)
        } else {
            Self::unavailable("the database does not answer").with_source(error)
        }
    }
}

impl From<CommitError> for Status {
    /// As for the [`StoreError`] inside; UNKNOWN when nobody knows whether the work was done.
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::RolledBack(error) => error.into(),
            CommitError::Unknown(_) => {
                Self::new(Code::Unknown, "it is not known whether the work was done")
                    .with_source(error)
            }
        }
    }
}
