//! Dead letters: what is kept of a message that nobody will try again, and what an operator can do
//! with it.

use antiphon_core::{BoxError, BoxFuture, MessageId, Timestamp};

use crate::Message;

/// Why a message became a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadReason {
    /// A stable word: `attempts`, `permanent`, `decode`, `dedup-horizon`, `expired`.
    pub code: &'static str,
    /// What happened, at most 2 KiB.
    pub error: String,
    /// How many attempts were made in all.
    pub attempts: u32,
}

/// One death of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// The stable word of [`DeadReason::code`].
    pub code: String,
    /// What happened.
    pub error: String,
    /// How many attempts were made.
    pub attempts: u32,
    /// When.
    pub at: Timestamp,
}

/// A message that nobody will try again unless an operator says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The group that could not handle it.
    pub group: String,
    /// The message, as it was published.
    pub message: Message,
    /// Every death, oldest first; never empty. All but the last were followed by a redrive.
    pub deaths: Vec<Dead>,
}

impl DeadLetter {
    /// How often it was redriven.
    #[must_use]
    pub fn redrives(&self) -> usize {
        self.deaths.len().saturating_sub(1)
    }
}

/// Which dead letters are meant; what is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadFilter {
    /// Of this group.
    pub group: Option<String>,
    /// Whose last death has this code.
    pub code: Option<String>,
    /// Of this kind.
    pub kind: Option<String>,
    /// Of this key.
    pub key: Option<String>,
    /// That died at or after this moment.
    pub since: Option<Timestamp>,
}

impl DeadFilter {
    /// Those of `group`.
    #[must_use]
    pub fn group(group: impl Into<String>) -> Self {
        Self { group: Some(group.into()), ..Self::default() }
    }

    /// Whether `letter` is meant.
    #[must_use]
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        let is = |wanted: &Option<String>, value: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == value)
        };
        let last = letter.deaths.last();
        is(&self.group, &letter.group)
            && is(&self.kind, &letter.message.kind)
            && is(&self.key, &letter.message.key)
            && is(&self.code, last.map_or("", |dead| &dead.code))
            && self.since.is_none_or(|since| last.is_some_and(|dead| dead.at >= since))
    }
}

/// The dead letters could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("dead letters: {action} failed")]
pub struct DeadError {
    /// What was attempted.
    pub action: &'static str,
    /// The cause.
    #[source]
    pub source: BoxError,
}

/// The operator's view of dead letters.
///
/// 1. A letter is listed from the moment its `Dead` is settled until it is redriven or discarded.
/// 2. `list` yields letters ordered by group and message id, so that a page can begin after the
///    last one of the page before, whatever has changed in between.
/// 3. `redrive` gives the message back to the group that failed and to no other, with its id, as a
///    first attempt; if it dies again, the letter has one death more.
/// 4. `redrive` and `discard` skip letters that are not there, and count the others.
/// 5. `bury` keeps a message that never was at this broker, as if a declared group had settled it
///    as `Dead`; it answers when that is as durable as the broker's messages.
pub trait DeadLetters: Send + Sync + 'static {
    /// A page of the letters that match, after the one with this group and id.
    fn list<'a>(
        &'a self,
        filter: &'a DeadFilter,
        after: Option<(&'a str, MessageId)>,
        count_max: usize,
    ) -> BoxFuture<'a, Result<Vec<DeadLetter>, DeadError>>;

    /// Keeps a dead letter of a group for a broker that keeps none.
    fn bury<'a>(
        &'a self,
        group: &'a str,
        message: &'a Message,
        reason: &'a DeadReason,
    ) -> BoxFuture<'a, Result<(), DeadError>>;

    /// One letter.
    fn get<'a>(
        &'a self,
        group: &'a str,
        id: MessageId,
    ) -> BoxFuture<'a, Result<Option<DeadLetter>, DeadError>>;

    /// Gives messages back to their group; yields how many.
    fn redrive<'a>(
        &'a self,
        group: &'a str,
        ids: &'a [MessageId],
    ) -> BoxFuture<'a, Result<usize, DeadError>>;

    /// Forgets letters for good; yields how many.
    fn discard<'a>(
        &'a self,
        group: &'a str,
        ids: &'a [MessageId],
    ) -> BoxFuture<'a, Result<usize, DeadError>>;
}
