//! The ports that a store adapter implements, and their rules. `antiphon-testing` has one test per
//! rule; every adapter runs them all.

use antiphon_core::Timestamp;
use antiphon_messaging::{LANES, Message};
use antiphon_outbox::{InboxEntry, InboxStore, LeaseStore, Store, StoreError};
use bytes::Bytes;

use crate::SagaId;

/// How far a saga is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Going forward.
    Running,
    /// Undoing what was done.
    Compensating,
    /// Ended; everything was done.
    Completed,
    /// Ended; everything was undone.
    Compensated,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 4] =
        [Self::Running, Self::Compensating, Self::Completed, Self::Compensated];

    /// The number it is stored as.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// From the number it is stored as.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The word for it in labels, logs and command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Compensating => "compensating",
            Self::Completed => "completed",
            Self::Compensated => "compensated",
        }
    }

    /// Whether nothing happens any more.
    #[must_use]
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Compensated)
    }
}

/// One saga as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SagaRow {
    /// Which saga.
    pub id: SagaId,
    /// The type, as its definition is named.
    pub kind: String,
    /// What it is about; unique within the type.
    pub correlation: String,
    /// The version of the definition that it runs.
    pub version: u32,
    /// How far it is.
    pub state: State,
    /// Whether an operator must look at it.
    pub parked: bool,
    /// Grows by one with every [`SagaStore::save`].
    pub revision: i64,
    /// When something must happen at the latest; `None` when nothing must.
    pub wake_at: Option<Timestamp>,
    /// The durable data of the definition.
    pub data: Bytes,
    /// The steps, encoded.
    pub progress: String,
    /// When it was started.
    pub created_at: Timestamp,
    /// When it was saved last.
    pub updated_at: Timestamp,
}

impl SagaRow {
    /// The share of the timers that it belongs to.
    #[must_use]
    pub fn lane(id: SagaId) -> u32 {
        // The last byte of the id is hashed already.
        u32::from(id.as_bytes()[15]) % LANES
    }
}

/// How many sagas of one type and version are in one state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SagaCount {
    /// The type.
    pub kind: String,
    /// The version of the definition.
    pub version: u32,
    /// How far they are.
    pub state: State,
    /// Whether they are parked.
    pub parked: bool,
    /// How many.
    pub count: u64,
}

/// Which sagas to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SagaFilter {
    /// Only this type.
    pub kind: Option<String>,
    /// Only this state.
    pub state: Option<State>,
    /// Only those that are parked.
    pub parked: bool,
    /// Only those after this one.
    pub after: Option<SagaId>,
}

/// Keeps sagas.
///
/// 1. `insert`, `load` and `save` are part of the transaction.
/// 2. There is one saga per type and correlation id: of two transactions that insert it, one gets
///    `true` and the other, after the first has committed, `false` (or [`StoreError::Busy`]).
/// 3. When a row was saved by another transaction since it was loaded, `save` or the commit fails, and
///    nothing of the transaction is written.
/// 4. `due` answers each committed saga whose `wake_at` has come, the longest waiting first.
/// 5. `forget_ended` forgets sagas that ended before a moment, and no others.
pub trait SagaStore: LeaseStore {
    /// Adds a saga, unless there is one of its type and correlation id.
    ///
    /// # Errors
    /// The store fails; the transaction must be rolled back.
    fn insert(
        &self,
        connection: &mut Self::Connection,
        row: &SagaRow,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Reads sagas in order to change them; those that are not there are missing from the answer,
    /// whose order is any.
    ///
    /// # Errors
    /// The store fails; the transaction must be rolled back.
    fn load(
        &self,
        connection: &mut Self::Connection,
        ids: &[SagaId],
    ) -> impl Future<Output = Result<Vec<SagaRow>, StoreError>> + Send;

    /// Writes sagas back. The `revision` of each is the one that was loaded; it is stored increased
    /// by one. A store that lets one transaction write at a time may put this off until the commit.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when somebody else saved one of them since; otherwise the store fails.
    /// The transaction must be rolled back.
    fn save(
        &self,
        connection: &mut Self::Connection,
        rows: &[SagaRow],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Finds a saga by what it is about, within the transaction.
    ///
    /// # Errors
    /// The store fails; the transaction must be rolled back.
    fn find(
        &self,
        connection: &mut Self::Connection,
        kind: &str,
        correlation: &str,
    ) -> impl Future<Output = Result<Option<SagaRow>, StoreError>> + Send;

    /// Sagas of these lanes whose time has come, at most `count_max`.
    ///
    /// # Errors
    /// The store fails.
    fn due(
        &self,
        lanes: &[u32],
        now: Timestamp,
        count_max: u32,
    ) -> impl Future<Output = Result<Vec<SagaId>, StoreError>> + Send;

    /// How many sagas have not ended, by type, version and state.
    ///
    /// # Errors
    /// The store fails.
    fn live(&self) -> impl Future<Output = Result<Vec<SagaCount>, StoreError>> + Send;

    /// Sagas in the order of their ids, at most `count_max`.
    ///
    /// # Errors
    /// The store fails.
    fn list(
        &self,
        filter: &SagaFilter,
        count_max: u32,
    ) -> impl Future<Output = Result<Vec<SagaRow>, StoreError>> + Send;

    /// Forgets at most `count_max` sagas that ended before `before`, and says how many.
    ///
    /// # Errors
    /// The store fails.
    fn forget_ended(
        &self,
        before: Timestamp,
        count_max: u32,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;
}

/// Which piece of work of which saga.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BarrierKey {
    /// The saga.
    pub saga: SagaId,
    /// The name of the step.
    pub step: String,
    /// Whether the step is done or undone.
    pub side: Side,
}

/// The two things that happen to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// It is done.
    Action,
    /// It is undone.
    Undo,
}

/// How a participant answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredReply {
    /// Done; the encoded reply.
    Done(Bytes),
    /// Refused, for good.
    Refused {
        /// A stable word.
        reason: String,
        /// What happened, for people.
        message: String,
    },
}

/// What the barrier says to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It was never here: do the work.
    First,
    /// It was here, and this was the answer; `None` when there is none yet.
    Repeated(Option<StoredReply>),
    /// An action that was undone before it came, and must never run.
    Blocked,
    /// An undo of an action that never ran or was refused, and never will run: there is nothing to
    /// do.
    Empty,
}

/// What a store keeps of a command that has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Its undo was here first.
    pub blocked: bool,
    /// How it was answered, as far as it was.
    pub answer: Option<StoredReply>,
}

impl Passed {
    /// What the barrier says to the same command when it comes again.
    #[must_use]
    pub fn again(self) -> Passage {
        if self.blocked { Passage::Blocked } else { Passage::Repeated(self.answer) }
    }

    /// What the barrier says to the undo of this action when it comes first.
    #[must_use]
    pub fn undo(self) -> Passage {
        match self.answer {
            Some(StoredReply::Refused { .. }) => Passage::Empty,
            _ if self.blocked => Passage::Empty,
            Some(StoredReply::Done(_)) | None => Passage::First,
        }
    }
}

/// Lets each action and each undo of a saga's step through once, and an action never after its
/// undo (the sub-transaction barrier of DTM: idempotence, empty compensation, hanging).
///
/// 1. `pass`, `answer` and `retract` are part of the transaction: they are undone with it.
/// 2. Of two transactions with the same key, one gets `First`, and the other, after the first has
///    committed, `Repeated` (or [`StoreError::Busy`]).
/// 3. An undo whose action has not passed, or was refused, gets `Empty`; the action then gets
///    `Blocked`, for ever.
/// 4. `forget_passed` forgets what passed before a moment, and nothing later.
/// 5. `enter_and_pass` answers as the inbox and `pass` do one after the other, and neither enters nor
///    passes what the inbox refuses.
pub trait BarrierStore: Store {
    /// Notes that the command with this key is here.
    ///
    /// # Errors
    /// The store fails; the transaction must be rolled back.
    fn pass(
        &self,
        connection: &mut Self::Connection,
        key: &BarrierKey,
        now: Timestamp,
    ) -> impl Future<Output = Result<Passage, StoreError>> + Send;

    /// Enters one message into the inbox of `consumer` and, if it is new, passes the barrier:
    /// [`InboxStore::enter`] and `pass` one after the other, for stores that do both at once.
    ///
    /// # Errors
    /// The store fails; the transaction must be rolled back.
    fn enter_and_pass(
        &self,
        connection: &mut Self::Connection,
        consumer: &str,
        message: &Message,
        key: &BarrierKey,
        now: Timestamp,
    ) -> impl Future<Output = Result<(InboxEntry, Option<Passage>), StoreError>> + Send
    where
        Self: InboxStore,
    {
        async move {
            let entries = self.enter(connection, consumer, &[message]).await?;
            let entry = entries.into_iter().next().unwrap_or(InboxEntry::Duplicate);
            let passage = match entry {
                InboxEntry::New => Some(self.pass(connection, key, now).await?),
                InboxEntry::Duplicate | InboxEntry::BeyondHorizon => None,
            };
            Ok((entry, passage))
        }
    }

    /// Keeps the answer to a command that has passed, in place of an earlier one.
    ///
    /// # Errors
    /// The store fails; the transaction must be rolled back.
    fn answer(
        &self,
        connection: &mut Self::Connection,
        key: &BarrierKey,
        reply: &StoredReply,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Forgets that the command with this key has passed, so that it may pass again.
    ///
    /// # Errors
    /// The store fails; the transaction must be rolled back.
    fn retract(
        &self,
        connection: &mut Self::Connection,
        key: &BarrierKey,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Forgets at most `count_max` commands that passed before `before`, and says how many.
    ///
    /// # Errors
    /// The store fails.
    fn forget_passed(
        &self,
        before: Timestamp,
        count_max: u32,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;
}
