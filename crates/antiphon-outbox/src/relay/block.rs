//! What must wait: a whole topic, or one key of it.
//!
//! A block is a circuit breaker. It is open until a moment, then lets one row through as a probe;
//! success removes it, another failure doubles the wait. No attempt is counted against a message.

use std::collections::HashMap;
use std::time::Duration;

use antiphon_messaging::Message;
use tokio::time::Instant;

/// What a block covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    /// Everything that goes to a topic.
    Topic(String),
    /// What goes to a topic with one key.
    Key(String, String),
}

impl Scope {
    pub(super) fn topic_of(message: &Message) -> Self {
        Self::Topic(message.topic.clone())
    }

    pub(super) fn key_of(message: &Message) -> Self {
        Self::Key(message.topic.clone(), message.key.clone())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    until: Instant,
    failures: u32,
    /// Rows of this scope were passed over in reading and are only in the store.
    passed_over: bool,
}

/// Whether a row may be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// Nothing is in the way.
    Free,
    /// The wait is over: one row may try.
    Probe,
    /// Not now.
    Closed,
}

/// The blocks of one lane. Almost always empty.
#[derive(Debug, Default)]
pub(super) struct Blocks(HashMap<Scope, Block>);

impl Blocks {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Closes `scope` for a while, longer with every failure in a row.
    pub(super) fn close(&mut self, scope: Scope, first: Duration, max: Duration, now: Instant) {
        let block =
            self.0.entry(scope).or_insert(Block { until: now, failures: 0, passed_over: false });
        let wait = first.saturating_mul(2_u32.saturating_pow(block.failures)).min(max);
        block.failures = block.failures.saturating_add(1);
        block.until = now + wait;
    }

    /// The broker took a row: opens what covered it. Answers whether rows were passed over, which
    /// must now be read again.
    pub(super) fn open(&mut self, message: &Message) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let topic = self.0.remove(&Scope::topic_of(message));
        let key = self.0.remove(&Scope::key_of(message));
        [topic, key].into_iter().flatten().any(|block| block.passed_over)
    }

    fn covering(&self, message: &Message) -> impl Iterator<Item = (Scope, &Block)> {
        [Scope::topic_of(message), Scope::key_of(message)]
            .into_iter()
            .filter_map(|scope| self.0.get(&scope).map(|block| (scope, block)))
    }

    /// The scopes with a block that a row belongs to.
    pub(super) fn scopes_of(&self, message: &Message) -> impl Iterator<Item = Scope> {
        self.covering(message).map(|(scope, _)| scope)
    }

    /// The scope that decides about a row, and what it says.
    pub(super) fn passage(&self, message: &Message, now: Instant) -> (Passage, Option<Scope>) {
        if self.0.is_empty() {
            return (Passage::Free, None);
        }
        let mut answer = (Passage::Free, None);
        for (scope, block) in self.covering(message) {
            if block.until > now {
                return (Passage::Closed, Some(scope));
            }
            if answer.1.is_none() {
                answer = (Passage::Probe, Some(scope));
            }
        }
        answer
    }

    /// Whether any block covers a row, open for a probe or not.
    pub(super) fn covers(&self, message: &Message) -> bool {
        self.covering(message).next().is_some()
    }

    /// Whether a row that was read now can be kept in memory: earlier rows of its scope must not be
    /// missing there.
    pub(super) fn is_gapless(&self, message: &Message) -> bool {
        self.0.is_empty() || self.covering(message).all(|(_, block)| !block.passed_over)
    }

    /// A row is left to the store until its scope opens.
    pub(super) fn pass_over(&mut self, message: &Message) {
        for scope in [Scope::topic_of(message), Scope::key_of(message)] {
            if let Some(block) = self.0.get_mut(&scope) {
                block.passed_over = true;
            }
        }
    }

    /// Whether any row was left to the store.
    pub(super) fn any_passed_over(&self) -> bool {
        self.0.values().any(|block| block.passed_over)
    }

    /// When the next probe is allowed.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        self.0.values().map(|block| block.until).min()
    }
}
