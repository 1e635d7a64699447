//! Everything that a broker changes in its database, as data: so that a database can put many
//! changes into one transaction, merge those of one kind into one statement, and make them again
//! when the transaction had to be given up.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::{DeadReason, Message, Topology};
use bytes::Bytes;
use tokio::sync::oneshot;

/// Why a change was not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It was certainly not made.
    #[error("not written: {0}")]
    NotMade(String),
    /// Nobody knows.
    #[error("it is not known whether it was written: {0}")]
    Unknown(String),
}

/// A message as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The number of its topic.
    pub topic: i64,
    /// Its lane.
    pub lane: u32,
    /// When it is to appear in the log, if not at once.
    pub due: Option<Timestamp>,
    /// Its id.
    pub id: [u8; 16],
    /// Its kind.
    pub kind: String,
    /// The rest of its envelope, by `antiphon_messaging::row`.
    pub head: Vec<u8>,
    /// Its body.
    pub body: Bytes,
}

/// A member of a group, as the tables know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The number of the group.
    pub group: i64,
    /// A name that nobody else has.
    pub owner: String,
    /// The numbers of the topics that it reads.
    pub topics: Vec<i64>,
}

/// What a member says with its heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Its lanes, each with its token.
    pub held: Vec<(u32, i64)>,
    /// It takes no more lanes.
    pub closing: bool,
    /// Its consumer has not asked for anything for some time; others may have all its lanes.
    pub idle: bool,
    /// The time here. A database whose members run on several machines uses its own.
    pub now: Timestamp,
    /// How long it may be silent from now on.
    pub ttl: Duration,
}

/// A lane that was taken, with the cursors of the topics that were asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Which.
    pub lane: u32,
    /// The token of the lease; never used before.
    pub token: i64,
    /// By topic: everything up to here is done, except these.
    pub cursors: Vec<(i64, BTreeSet<i64>)>,
}

/// The answer to a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// How many lanes the member is to have.
    pub target: usize,
    /// Which of its lanes it still has.
    pub kept: Vec<u32>,
    /// What it was given.
    pub taken: Vec<Taken>,
    /// Changes when waiting messages were changed by somebody else than the holder of their lane.
    pub stirred: i64,
    /// Whether the member is new.
    pub joined: bool,
}

/// What is to be written of one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The lane.
    pub lane: u32,
    /// The token of its lease.
    pub token: i64,
    /// Its cursors.
    pub cursors: Vec<Written>,
    /// Waiting messages that were handled, as (topic, seq).
    pub done: Vec<(i64, i64)>,
}

/// A cursor as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The number of the topic.
    pub topic: i64,
    /// Everything up to here is done...
    pub position: i64,
    /// ...except these, by [`pack`](crate::pack).
    pub open: Vec<u8>,
    /// The first position that is still needed.
    pub low: i64,
}

/// A message of a group, by its place and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of the group.
    pub group: i64,
    /// The number of the topic.
    pub topic: i64,
    /// The position.
    pub seq: i64,
    /// The lane.
    pub lane: u32,
    /// The key.
    pub key: String,
    /// Whether it is among the waiting by now, or still only in the log.
    pub waited: bool,
}

/// What becomes of a claimed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was handled.
    Done,
    /// It waits.
    Again {
        /// Until when.
        due: Timestamp,
        /// How many attempts were made.
        attempts: u32,
    },
    /// It is a dead letter.
    Dead {
        /// Its id.
        id: MessageId,
        /// Why.
        reason: DeadReason,
        /// When.
        at: Timestamp,
    },
}

/// One change. Each is made as a whole or not at all.
#[derive(Clone, Debug)]
pub enum Change {
    /// Makes sure of topics and groups. [`Outcome::Done`].
    Declare(Topology),
    /// Adds messages at the ends of their logs, or among the delayed. [`Outcome::Published`].
    Publish(Vec<Row>),
    /// Announces a member, renews its leases, and takes free lanes up to its fair share.
    /// [`Outcome::Shared`].
    Beat(Identity, Beat),
    /// Writes progress, lane by lane, where the lease still holds. [`Outcome::Lost`].
    Advance {
        /// The number of the group.
        group: i64,
        /// What to write.
        progress: Vec<Progress>,
    },
    /// Writes progress and gives the leases back; the claimed messages of those lanes, with their
    /// attempts, stay in the member's hands. [`Outcome::Done`].
    Release {
        /// Who.
        member: Identity,
        /// The lanes.
        progress: Vec<Progress>,
        /// What it keeps.
        claimed: Vec<(Place, u32)>,
    },
    /// Writes progress, gives everything back and leaves the group. [`Outcome::Done`].
    Leave {
        /// Who.
        member: Identity,
        /// Its lanes.
        progress: Vec<Progress>,
    },
    /// Lets a message wait, if the lease holds. [`Outcome::Held`].
    Park {
        /// Which message.
        place: Place,
        /// The token of its lane.
        token: i64,
        /// Until when.
        due: Timestamp,
        /// How many attempts were made.
        attempts: u32,
    },
    /// Makes a message a dead letter of its group, if the lease holds. [`Outcome::Held`].
    Bury {
        /// Which message.
        place: Place,
        /// The token of its lane.
        token: i64,
        /// Its id.
        id: MessageId,
        /// Why.
        reason: DeadReason,
        /// When.
        at: Timestamp,
    },
    /// Settles a claimed message, if the claim is still there. [`Outcome::Held`].
    Settle {
        /// Which message.
        place: Place,
        /// Who has claimed it.
        owner: String,
        /// What becomes of it.
        verdict: Verdict,
    },
    /// Keeps a dead letter of a message that never was in a log; [`Outcome::Held`] says whether
    /// there is such a group.
    BuryForeign {
        /// The name of the group.
        group: String,
        /// The message.
        message: Message,
        /// Why.
        reason: DeadReason,
        /// When.
        at: Timestamp,
    },
    /// Gives dead letters back to their group: they wait, due at once, as first attempts.
    /// [`Outcome::Count`].
    Redrive {
        /// The number of the group.
        group: i64,
        /// Which.
        ids: Vec<MessageId>,
    },
    /// Forgets dead letters. [`Outcome::Count`].
    Discard {
        /// The number of the group.
        group: i64,
        /// Which.
        ids: Vec<MessageId>,
    },
    /// Moves some of the delayed messages that are due to their logs. [`Outcome::Published`].
    MoveDue {
        /// What is due by now.
        now: Timestamp,
    },
    /// Removes some of what every group has handled. [`Outcome::More`].
    Trim,
    /// Lays down an answer. [`Outcome::Done`].
    Answer {
        /// For whom.
        address: String,
        /// The answer.
        message: Message,
        /// When.
        at: Timestamp,
    },
    /// Takes the answers that lie there. [`Outcome::Answers`].
    TakeAnswers {
        /// For whom.
        addresses: Vec<String>,
    },
    /// Removes answers that nobody has taken. [`Outcome::Done`].
    ForgetAnswers {
        /// Laid down before.
        before: Timestamp,
    },
}

/// What came of a change.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It was made.
    Done,
    /// It was made if this is true; otherwise what it needs is not there any more.
    Held(bool),
    /// The lanes whose lease was lost, where nothing was written.
    Lost(Vec<u32>),
    /// Of a heartbeat.
    Shared(Shared),
    /// How many there were.
    Count(usize),
    /// The topics whose logs have grown, each with its last position (or less).
    Published(Vec<(i64, i64)>),
    /// Whether there is more of the kind.
    More(bool),
    /// Answers, each with its address.
    Answers(Vec<(String, Message)>),
}

type Then = Box<dyn FnOnce(Result<Outcome, Failure>) + Send>;

/// A change that somebody waits for. Whoever waits for one that is dropped hears that nobody knows.
pub struct Job {
    /// What to do.
    pub change: Change,
    then: Then,
}

impl Job {
    /// `then` is called with the outcome, in the order of the changes.
    pub fn new(
        change: Change,
        then: impl FnOnce(Result<Outcome, Failure>) + Send + 'static,
    ) -> Self {
        Self { change, then: Box::new(then) }
    }

    /// A job, and the answer to it.
    pub(crate) fn with_answer(
        change: Change,
        then: impl FnOnce(&Result<Outcome, Failure>) + Send + 'static,
    ) -> (Self, Answer) {
        let (sender, receiver) = oneshot::channel();
        let job = Self::new(change, move |outcome| {
            then(&outcome);
            drop(sender.send(outcome));
        });
        (job, Answer(receiver))
    }

    /// Tells what came of it.
    pub fn finish(self, outcome: Result<Outcome, Failure>) {
        (self.then)(outcome);
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Job").field(&self.change).finish()
    }
}

/// The answer to a change, when it is committed.
pub(crate) struct Answer(oneshot::Receiver<Result<Outcome, Failure>>);

impl Answer {
    pub(crate) async fn get(self) -> Result<Outcome, Failure> {
        match self.0.await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Unknown("the writer of the broker has ended".into())),
        }
    }

    pub(crate) async fn held(self) -> Result<bool, Failure> {
        match self.get().await? {
            Outcome::Held(held) => Ok(held),
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) async fn count(self) -> Result<usize, Failure> {
        match self.get().await? {
            Outcome::Count(count) => Ok(count),
            other => Err(unexpected(&other)),
        }
    }
}

/// A database has answered something else than its port says.
pub(crate) fn unexpected(outcome: &Outcome) -> Failure {
    Failure::Unknown(format!("the database has answered {outcome:?}"))
}
