//! What is committed, and who holds locks.

use std::collections::{BTreeMap, HashMap};

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::Message;
use antiphon_outbox::{Buried, Seq, StoredCall};
use antiphon_saga::{BarrierKey, SagaId, SagaRow, StoredReply};
use bytes::Bytes;

/// What a row is found by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Key {
    /// A business row: table and key.
    Row(String, String),
    /// An entry of the inbox: consumer and message.
    Entered(String, MessageId),
    /// A stored answer: method and key.
    Answer(String, String),
    /// A saga.
    Saga(SagaId),
    /// The saga of this type and correlation id.
    SagaOf(String, String),
    /// A command of a saga that has passed.
    Barrier(BarrierKey),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Row(Bytes),
    Entered,
    Answer(StoredCall, Timestamp),
    Saga(SagaRow),
    SagaOf(SagaId),
    Barrier(Passed),
}

/// What the barrier remembers of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) at: Timestamp,
    /// It is an action that was undone before it came.
    pub(super) blocked: bool,
    pub(super) answer: Option<StoredReply>,
}

#[derive(Clone, Debug)]
pub(super) struct Committed {
    pub(super) lane: u32,
    pub(super) message: Message,
}

#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) token: i64,
    pub(super) owner: String,
    pub(super) until: Timestamp,
}

/// Consumer, topic and kind.
pub(super) type Handled = (String, String, String);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HandledTotals {
    pub(super) done: u64,
    pub(super) duplicates: u64,
}

#[derive(Debug, Default)]
pub(super) struct State {
    transactions: u64,
    pub(super) committed: BTreeMap<Key, Value>,
    /// Which open transaction writes a row.
    pub(super) locks: HashMap<Key, u64>,
    seq: i64,
    pub(super) outbox: BTreeMap<Seq, Committed>,
    pub(super) buried: Vec<Buried>,
    /// Messages ever committed, by topic and kind.
    pub(super) sent: BTreeMap<(String, String), u64>,
    pub(super) handled: BTreeMap<Handled, HandledTotals>,
    pub(super) horizon: Timestamp,
    token: i64,
    pub(super) leases: BTreeMap<(String, u32), Holder>,
    pub(super) instances: BTreeMap<(String, String), Timestamp>,
}

impl State {
    pub(super) fn next_transaction(&mut self) -> u64 {
        self.transactions += 1;
        self.transactions
    }

    /// Drawn when a row is written, not when it is committed, and lost with a rollback.
    pub(super) fn next_seq(&mut self) -> Seq {
        self.seq += 1;
        Seq(self.seq)
    }

    pub(super) fn next_token(&mut self) -> i64 {
        self.token += 1;
        self.token
    }
}
