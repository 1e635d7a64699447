//! Which messages were handled: the port.

use antiphon_core::Timestamp;
use antiphon_messaging::Message;

use super::{Store, StoreError};

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

/// How many messages of one kind, from one topic, one consumer has handled, since the database
/// exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandledCount {
    /// The consumer.
    pub consumer: String,
    /// The topic that they came from.
    pub topic: String,
    /// The full name of the message type.
    pub kind: String,
    /// How many took effect.
    pub done: u64,
    /// How many came again and were only acknowledged.
    pub duplicates: u64,
}

/// Remembers which messages a consumer has handled.
///
/// 1. `enter` is part of the transaction: it is undone with it.
/// 2. Of two transactions with the same message and consumer, one gets `New` and the other, after
///    the first has committed, `Duplicate` (or [`StoreError::Busy`], when it did not wait).
/// 3. A message older than the horizon is `BeyondHorizon`, whether or not it was ever seen; `expire`
///    moves the horizon and forgets in one step. So is one whose id tells no time.
/// 4. `handled` is exact: it counts what `enter` answered in transactions that committed, and goes
///    on counting what is forgotten.
pub trait InboxStore: Store {
    /// Notes that `consumer` handles `messages`, and answers for each, in the order of the input.
    /// The second of two equal messages in one call is a duplicate.
    ///
    /// # Errors
    /// The store fails; the transaction must be rolled back.
    fn enter(
        &self,
        connection: &mut Self::Connection,
        consumer: &str,
        messages: &[&Message],
    ) -> impl Future<Output = Result<Vec<InboxEntry>, StoreError>> + Send;

    /// Moves the horizon to `horizon` (never back), and forgets what lies before it. Answers how
    /// many entries were forgotten.
    ///
    /// # Errors
    /// The store fails.
    fn expire(&self, horizon: Timestamp) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// The ledger's side of the consumers, by consumer, topic and kind. Cheap enough to ask every
    /// ten seconds.
    ///
    /// # Errors
    /// The store fails.
    fn handled(&self) -> impl Future<Output = Result<Vec<HandledCount>, StoreError>> + Send;
}
