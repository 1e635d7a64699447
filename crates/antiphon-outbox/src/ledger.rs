//! The ledger: what was committed against what took effect.
//!
//! It counts *expected deliveries*. For each group and each kind of message that it handles, every
//! message of that kind which any database has committed (and the broker has not refused for good)
//! must end in exactly one of two ways: handled by the group, or dead in the group.
//!
//! Nothing extra is written for it. A sender's database knows what it committed (rows of the outbox,
//! and a counter moved in the transaction that removes them); a consumer's database knows what took
//! effect (the inbox entries, and what was forgotten of them). Both numbers are exact under crashes,
//! since each is part of the transaction that it counts. An auditor adds up the databases.
//!
//! While work goes on, read the consumers before the senders: then nothing is handled that does not
//! seem to be committed, and what is in between shows as in flight. `lost` is certain once everything
//! is at rest.

use std::collections::BTreeMap;

use crate::port::{HandledCount, SentCount};

/// Group, topic and kind.
type Flow = (String, String, String);

/// Adds up the databases of a system. See the module.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    flows: BTreeMap<Flow, Received>,
    sent: BTreeMap<(String, String), Sent>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    committed: u64,
    waiting: u64,
    buried: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Received {
    before: u64,
    done: u64,
    duplicates: u64,
    dead: u64,
    pending: u64,
}

/// What has become of one kind of message in one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerLine {
    /// The group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// The full name of the message type.
    pub kind: String,
    /// Messages that were committed since the group exists.
    pub committed: u64,
    /// Of those, what the broker refused for good; an operator knows of them.
    pub buried: u64,
    /// What waits in an outbox or in the broker.
    pub in_flight: u64,
    /// What took effect.
    pub done: u64,
    /// Repetitions that were suppressed.
    pub duplicates: u64,
    /// What is kept as a dead letter, or was discarded as one.
    pub dead: u64,
    /// What is nowhere. Must be 0 at rest.
    pub lost: u64,
    /// What took effect without having been committed. Must always be 0.
    pub surplus: u64,
}

impl Ledger {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `group` handles `kind` from `topic`: every such message is expected there.
    pub fn expect(&mut self, group: &str, topic: &str, kind: &str) {
        self.flow(group, topic, kind);
    }

    /// The group came later: the first `count` messages are not expected.
    pub fn joined_after(&mut self, group: &str, topic: &str, kind: &str, count: u64) {
        self.flow(group, topic, kind).before = count;
    }

    /// Adds what one database has sent.
    pub fn add_sent(&mut self, counts: &[SentCount]) {
        for count in counts {
            let sent = self.sent.entry((count.topic.clone(), count.kind.clone())).or_default();
            sent.committed += count.committed;
            sent.waiting += count.waiting;
            sent.buried += count.buried;
        }
    }

    /// Adds what one database has handled. Groups that were not expected are from now on.
    pub fn add_handled(&mut self, counts: &[HandledCount]) {
        for count in counts {
            let flow = self.flow(&count.consumer, &count.topic, &count.kind);
            flow.done += count.done;
            flow.duplicates += count.duplicates;
        }
    }

    /// Adds dead letters of a group, discarded ones included.
    pub fn add_dead(&mut self, group: &str, topic: &str, kind: &str, count: u64) {
        self.flow(group, topic, kind).dead += count;
    }

    /// Adds what the broker still holds for a group, where it can tell.
    pub fn add_pending(&mut self, group: &str, topic: &str, kind: &str, count: u64) {
        self.flow(group, topic, kind).pending += count;
    }

    fn flow(&mut self, group: &str, topic: &str, kind: &str) -> &mut Received {
        self.flows.entry((group.to_owned(), topic.to_owned(), kind.to_owned())).or_default()
    }

    /// One line per group, topic and kind, in this order.
    #[must_use]
    pub fn lines(&self) -> Vec<LedgerLine> {
        self.flows
            .iter()
            .map(|((group, topic, kind), received)| {
                let sent = self.sent.get(&(topic.clone(), kind.clone())).copied();
                let sent = sent.unwrap_or_default();
                let committed = sent.committed.saturating_sub(received.before);
                let expected = committed.saturating_sub(sent.buried);
                let ended = received.done + received.dead;
                let in_flight = sent.waiting + received.pending;
                LedgerLine {
                    group: group.clone(),
                    topic: topic.clone(),
                    kind: kind.clone(),
                    committed,
                    buried: sent.buried,
                    in_flight,
                    done: received.done,
                    duplicates: received.duplicates,
                    dead: received.dead,
                    lost: expected.saturating_sub(ended + in_flight),
                    surplus: ended.saturating_sub(expected),
                }
            })
            .collect()
    }

    /// Whether everything that was committed took effect or is dead, and nothing else did.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.lines().iter().all(|line| line.in_flight == 0 && line.lost == 0 && line.surplus == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(committed: u64, waiting: u64, buried: u64) -> SentCount {
        SentCount { topic: "orders".into(), kind: "Placed".into(), committed, waiting, buried }
    }

    fn handled(consumer: &str, done: u64, duplicates: u64) -> HandledCount {
        HandledCount {
            consumer: consumer.into(),
            topic: "orders".into(),
            kind: "Placed".into(),
            done,
            duplicates,
        }
    }

    #[test]
    fn every_group_answers_for_every_message_of_all_databases() {
        let mut ledger = Ledger::new();
        ledger.expect("mail", "orders", "Placed");
        ledger.add_sent(&[sent(7, 1, 1)]);
        ledger.add_sent(&[sent(5, 0, 0)]);
        ledger.add_handled(&[handled("points", 9, 3)]);
        ledger.add_dead("points", "orders", "Placed", 1);
        let lines = ledger.lines();
        let figures: Vec<_> = lines
            .iter()
            .map(|line| (line.group.as_str(), line.in_flight, line.done, line.dead, line.lost))
            .collect();
        assert_eq!(figures, [("mail", 1, 0, 0, 10), ("points", 1, 9, 1, 0)]);
        assert_eq!((lines[1].committed, lines[1].buried, lines[1].duplicates), (12, 1, 3));
        assert!(!ledger.is_settled());
    }

    #[test]
    fn at_rest_the_books_balance() {
        let mut ledger = Ledger::new();
        ledger.add_sent(&[sent(10, 0, 0)]);
        ledger.add_handled(&[handled("points", 10, 4)]);
        ledger.joined_after("mail", "orders", "Placed", 10);
        assert!(ledger.is_settled());
    }

    #[test]
    fn an_effect_without_a_commit_is_a_surplus() {
        let mut ledger = Ledger::new();
        ledger.add_sent(&[sent(1, 0, 0)]);
        ledger.add_handled(&[handled("points", 2, 0)]);
        assert_eq!(ledger.lines()[0].surplus, 1);
        assert!(!ledger.is_settled());
    }
}
