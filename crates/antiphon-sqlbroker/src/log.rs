//! The port that a database implements.

use std::sync::Arc;

use antiphon_core::{Finding, MessageId, Timestamp};
use antiphon_messaging::{DeadLetter, Durability, GroupState, TopicState, Topology};

use crate::change::{Failure, Job, Taken};
use crate::share::{At, Ready, Scan};

/// A topic of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
}

/// What to read.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The number of the group.
    pub group: i64,
    /// The topics, which [`At`] names by their index.
    pub topics: Arc<[Topic]>,
    /// From where on.
    pub scan: Scan,
    /// Waiting messages.
    pub due: Vec<At>,
    /// How many new messages of each topic at most.
    pub limit: usize,
}

/// A row that holds no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Its lane.
    pub lane: u32,
    /// Where it is.
    pub at: At,
    /// What is wrong with it.
    pub error: String,
}

/// What a scan has found.
#[derive(Debug, Default)]
pub struct Found {
    /// New messages of wanted lanes.
    pub ready: Vec<Ready>,
    /// Rows there that are none.
    pub broken: Vec<Broken>,
    /// By topic, how far it was scanned; `None` for "no further".
    pub ends: Vec<Option<i64>>,
    /// Whether there was more than was asked for.
    pub more: bool,
    /// Waiting messages that were asked for.
    pub due: Vec<Ready>,
    /// Rows there that are none.
    pub due_broken: Vec<Broken>,
    /// Positions that were asked for as due and do not wait any more.
    pub gone: Vec<At>,
}

/// A waiting message without its contents: where, its key, when it is due.
pub type WaitingRow = (At, String, Timestamp);

/// What has to be known of a lane that was taken over.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// What waits.
    pub waiting: Vec<WaitingRow>,
    /// What its last holder had in hand.
    pub again: Vec<Ready>,
    /// Rows there that are no messages.
    pub broken: Vec<Broken>,
}

/// A group that was asked for, by its number; its topics by theirs, or `None` where it was not
/// declared to read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joinable {
    /// The number of the group.
    pub group: i64,
    /// The numbers of the topics.
    pub topics: Vec<Option<i64>>,
}

/// What other processes may want to know at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring<'a> {
    /// Logs have grown: topics with their last positions.
    Published(&'a [(i64, i64)]),
    /// Members of the group have come, gone, or given something back.
    Regrouped(i64),
    /// An answer lies there.
    Answered,
}

/// A database that holds the rows of a broker, which processes share.
///
/// 1. Changes that are handed to `write` are made in that order as far as one can tell, and their
///    jobs are finished in that order, each after the commit that contains it. Each is made as a
///    whole or not at all; one that fails undoes no other.
/// 2. [`Failure::NotMade`] is certain. What was lost while it was being committed is
///    [`Failure::Unknown`], and never forgotten in silence.
/// 3. The positions of a topic begin at 1 and become visible in their order, whichever process
///    writes: when a scan sees a position, all lower ones that will ever be filled have been
///    visible to it. A position is not used twice, also after trimming.
/// 4. What is written for a lane is written only while the token of its lease is the one that the
///    change names. Whoever takes the lane over later sees all of it; nothing can be written with
///    the old token after that.
/// 5. A token is never given out twice. At most one member has a lane; a member that was silent for
///    longer than it said has none, and what it had claimed is due again.
/// 6. Rows of a log are removed only below every cursor's `low`. Delayed messages are moved to the
///    log when they are due, and come nowhere twice.
/// 7. `scan` reads what is committed, without locks. Neither its callback nor a job is finished
///    before the call that handed it in has returned: the caller may hold locks.
/// 8. Answers that were taken are gone before they are given out.
pub trait Log: Send + Sync + 'static {
    /// What a commit survives.
    fn durability(&self) -> Durability;

    /// Hands in a change; it is made whether or not anybody waits.
    fn write(&self, job: Job);

    /// Reads new messages and due ones.
    fn scan(
        &self,
        wanted: Wanted,
        then: impl FnOnce(Wanted, Result<Found, Failure>) + Send + 'static,
    );

    /// Tells other processes, if the database has a way to. Called after the commit.
    fn ring(&self, what: Ring<'_>) {
        let _ = what;
    }

    /// The number of a topic.
    fn topic(&self, name: &str) -> impl Future<Output = Result<Option<i64>, Failure>> + Send;

    /// The number of a group.
    fn group(&self, name: &str) -> impl Future<Output = Result<Option<i64>, Failure>> + Send;

    /// Whether there is nothing to declare.
    fn is_declared(
        &self,
        topology: &Topology,
    ) -> impl Future<Output = Result<bool, Failure>> + Send;

    /// A group and which of the topics it reads.
    fn joinable(
        &self,
        group: &str,
        topics: &[String],
    ) -> impl Future<Output = Result<Option<Joinable>, Failure>> + Send;

    /// What the lanes that were taken have waiting and open, in their order.
    fn inherit(
        &self,
        group: i64,
        topics: Arc<[Topic]>,
        taken: Arc<[Taken]>,
    ) -> impl Future<Output = Result<Vec<Inheritance>, Failure>> + Send;

    /// What waits in these lanes, in their order.
    fn waiting(
        &self,
        group: i64,
        topics: Arc<[Topic]>,
        lanes: Vec<u32>,
    ) -> impl Future<Output = Result<Vec<Vec<WaitingRow>>, Failure>> + Send;

    /// When the first delayed message is due.
    fn first_due(&self) -> impl Future<Output = Result<Option<Timestamp>, Failure>> + Send;

    /// Whether there are rows that nobody needs.
    fn is_removable(&self) -> impl Future<Output = Result<bool, Failure>> + Send;

    /// Some of the dead letters, of one group or of all, ordered by group and id, after this place.
    fn letters(
        &self,
        group: Option<String>,
        after: (String, [u8; 16]),
    ) -> impl Future<Output = Result<Vec<DeadLetter>, Failure>> + Send;

    /// One dead letter.
    fn letter(
        &self,
        group: &str,
        id: MessageId,
    ) -> impl Future<Output = Result<Option<DeadLetter>, Failure>> + Send;

    /// Whether answers lie at these addresses.
    fn has_answers(
        &self,
        addresses: Vec<String>,
    ) -> impl Future<Output = Result<bool, Failure>> + Send;

    /// Every topic, by name.
    fn topics(&self) -> impl Future<Output = Result<Vec<TopicState>, Failure>> + Send;

    /// Every group, by name.
    fn groups(&self) -> impl Future<Output = Result<Vec<GroupState>, Failure>> + Send;

    /// What a person should know of the database.
    fn findings(&self) -> impl Future<Output = Vec<Finding>> + Send;
}

/// What there is to see of other processes' commits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// The last position of each topic.
    pub heads: Vec<(i64, i64)>,
    /// By group: what changes when members come or go, or waiting messages are changed.
    pub stirred: Vec<(i64, i64)>,
    /// When the first delayed message is due.
    pub due: Option<Timestamp>,
}

/// A database that does not say by itself what has changed.
pub trait Look: Log {
    /// Looks, in one round trip.
    fn look(&self) -> impl Future<Output = Result<Sight, Failure>> + Send;
}
