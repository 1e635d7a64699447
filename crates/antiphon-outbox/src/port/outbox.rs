//! Messages that were committed with business rows: the port.

use antiphon_core::Timestamp;
use antiphon_messaging::{LANES, Message, lane_of};

use super::{Lease, LeaseStore, StoreError};

/// The position of a row in its lane; grows with commit order per key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub i64);

/// The lane in which the outbox keeps a message: that of its key, or, without a key, one that its
/// id picks.
#[must_use]
pub fn outbox_lane(message: &Message) -> u32 {
    if message.key.is_empty() {
        u32::from(message.id.as_bytes()[15]) % LANES
    } else {
        lane_of(&message.key)
    }
}

/// A committed message that is not published yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its lane.
    pub lane: u32,
    /// Its position there.
    pub seq: Seq,
    /// The message.
    pub message: Message,
}

/// Where to go on reading a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The lane.
    pub lane: u32,
    /// The last row that is known; `None` from the beginning.
    pub after: Option<Seq>,
}

/// Rows of one lane that the broker has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// The right to remove them.
    pub lease: Lease,
    /// The rows.
    pub rows: Vec<Seq>,
}

/// A row that the broker will never take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buried {
    /// The message.
    pub message: Message,
    /// Why.
    pub reason: String,
    /// When it was put aside.
    pub at: Timestamp,
}

/// What has become of the messages of one kind that were committed to one topic, since the
/// database exists. `committed - waiting - buried` is what the broker has confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentCount {
    /// The topic.
    pub topic: String,
    /// The full name of the message type.
    pub kind: String,
    /// How many were committed.
    pub committed: u64,
    /// How many of them are not published yet.
    pub waiting: u64,
    /// How many of them were put aside.
    pub buried: u64,
}

/// Messages that were committed with business rows.
///
/// 1. `append` makes them part of the transaction.
/// 2. Rows of one key are read in the order in which their transactions committed, and none is
///    skipped, however late its transaction commits: a lane read again from its beginning has it.
/// 3. `confirm` and `bury` change nothing in a lane whose lease was lost.
/// 4. A buried row is kept with its reason, and no longer read.
/// 5. A row is not read before its `not_before`, then at its position; until then it costs the
///    reads nothing.
/// 6. `sent` is exact: it counts each committed message once, whatever was repeated or cut.
pub trait OutboxStore: LeaseStore {
    /// Writes messages as the last statement of the transaction, each into the lane that
    /// [`outbox_lane`] names.
    ///
    /// # Errors
    /// The store fails; the transaction must be rolled back.
    fn append(
        &self,
        connection: &mut Self::Connection,
        messages: &[Message],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Reads, for each of the leased lanes, the rows after its position that are due by `due_by`,
    /// in order, at most `count_max` per lane. Takes no locks. Rows of different lanes come in any
    /// order.
    ///
    /// # Errors
    /// The store fails.
    fn read(
        &self,
        positions: &[Position],
        due_by: Timestamp,
        count_max: u32,
    ) -> impl Future<Output = Result<Vec<OutboxRow>, StoreError>> + Send;

    /// Removes rows that the broker has confirmed, of many lanes in one transaction. Answers with
    /// the lanes whose lease was lost: there nothing was removed. Rows that are gone already do not
    /// matter.
    ///
    /// # Errors
    /// The store fails; what was removed is unknown, and asking again is safe.
    fn confirm(
        &self,
        confirmations: &[Confirmation],
    ) -> impl Future<Output = Result<Vec<u32>, StoreError>> + Send;

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

    /// Rows that were put aside, the latest first, at most `count_max`.
    ///
    /// # Errors
    /// The store fails.
    fn buried(
        &self,
        count_max: u32,
    ) -> impl Future<Output = Result<Vec<Buried>, StoreError>> + Send;

    /// How many rows wait (those that are not due yet included), and since when the oldest does.
    ///
    /// # Errors
    /// The store fails.
    fn backlog(&self) -> impl Future<Output = Result<(u64, Option<Timestamp>), StoreError>> + Send;

    /// The ledger's side of the sender, by topic and kind. Cheap enough to ask every ten seconds.
    ///
    /// # Errors
    /// The store fails.
    fn sent(&self) -> impl Future<Output = Result<Vec<SentCount>, StoreError>> + Send;

    /// Completes when another process may have committed messages since it completed the last time.
    /// A store that does not hear of it never completes: the relay looks by itself now and then. One
    /// relay waits at a time.
    ///
    /// # Cancel safety
    /// Nothing is missed when the future is dropped and made again.
    fn changed(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}
