//! The messages of a lane that come again later, and the keys that they hold back.
//!
//! In an ordered group the first waiting message of a key stands for the key: the others of the key
//! wait behind it, whatever they are due. In other groups, and without a key, each is on its own.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use antiphon_core::Timestamp;

use crate::share::At;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// On its way into the table.
    Writing,
    /// In the table, until it is due.
    Waiting(Timestamp),
    /// Being read, or on its way to the consumer, or in its hands.
    Out,
}

#[derive(Debug)]
struct Entry {
    key: Box<str>,
    state: State,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Waiting {
    ordered: bool,
    entries: BTreeMap<At, Entry>,
    keys: HashMap<Box<str>, BTreeSet<At>>,
    /// The entries that may come when they are due.
    timers: BTreeSet<(Timestamp, At)>,
    /// Handled, but still in the table.
    done: BTreeSet<At>,
}

impl Waiting {
    pub(crate) fn new(ordered: bool) -> Self {
        Self {
            ordered,
            entries: BTreeMap::new(),
            keys: HashMap::new(),
            timers: BTreeSet::new(),
            done: BTreeSet::new(),
        }
    }

    pub(crate) fn contains(&self, at: At) -> bool {
        self.entries.contains_key(&at) || self.done.contains(&at)
    }

    /// Whether an earlier message of this key waits.
    pub(crate) fn holds(&self, key: &str, at: At) -> bool {
        !key.is_empty()
            && self.keys.get(key).and_then(BTreeSet::first).is_some_and(|first| *first < at)
    }

    /// An entry that is in the table.
    pub(crate) fn insert(&mut self, at: At, key: &str, due: Timestamp) {
        if !self.contains(at) {
            self.set(at, key, State::Waiting(due));
        }
    }

    /// What is in the table by now: new entries, and claimed ones that were given back or are gone.
    pub(crate) fn refresh(&mut self, rows: Vec<(At, String, Timestamp)>) {
        let claimed = State::Waiting(Timestamp::MAX);
        let mut gone: BTreeSet<At> = {
            let entries = self.entries.iter().filter(|(_, entry)| entry.state == claimed);
            entries.map(|(at, _)| *at).collect()
        };
        for (at, key, due) in rows {
            if gone.remove(&at) {
                self.update(at, State::Waiting(due));
            } else {
                self.insert(at, &key, due);
            }
        }
        for at in gone {
            self.remove(at);
        }
    }

    /// An entry that is being written to the table; it holds its key from now on.
    pub(crate) fn write(&mut self, at: At, key: &str) {
        self.set(at, key, State::Writing);
    }

    /// An entry that is in the table now, or was given back: it comes when it is due.
    pub(crate) fn again(&mut self, at: At, due: Timestamp) {
        self.update(at, State::Waiting(due));
    }

    /// The consumer has handled it; its row is still to be removed.
    pub(crate) fn done(&mut self, at: At) {
        self.remove(at);
        self.done.insert(at);
    }

    /// It is not in the table any more.
    pub(crate) fn forget(&mut self, at: At) {
        self.remove(at);
    }

    /// It was asked for and is not in the table.
    pub(crate) fn gone(&mut self, at: At) {
        if self.entries.get(&at).is_some_and(|entry| entry.state == State::Out) {
            self.remove(at);
        }
    }

    /// Whether a message that was read may go out: it was asked for and nothing has changed.
    pub(crate) fn begin(&self, at: At) -> bool {
        self.entries.get(&at).is_some_and(|entry| entry.state == State::Out)
    }

    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.timers.first().map(|(due, _)| *due).filter(|due| *due != Timestamp::MAX)
    }

    /// Moves what is due by `now` into `due`, up to `count`.
    pub(crate) fn take_due(&mut self, now: Timestamp, count: usize, due: &mut Vec<At>) {
        for _ in 0..count {
            match self.timers.first() {
                Some((when, at)) if *when <= now => {
                    let at = *at;
                    self.update(at, State::Out);
                    due.push(at);
                }
                _ => return,
            }
        }
    }

    /// What was handled and is still in the table.
    pub(crate) fn done_rows(&self) -> Vec<At> {
        self.done.iter().copied().collect()
    }

    /// The rows of what was handled are gone.
    pub(crate) fn removed(&mut self, done: &[At]) {
        for at in done {
            self.done.remove(at);
        }
    }

    fn set(&mut self, at: At, key: &str, state: State) {
        if self.entries.contains_key(&at) {
            self.update(at, state);
            return;
        }
        let before = self.head(key);
        self.entries.insert(at, Entry { key: key.into(), state });
        if self.ordered && !key.is_empty() {
            self.keys.entry(key.into()).or_default().insert(at);
        }
        if let Some(before) = before {
            self.arm(before);
        }
        self.arm(at);
    }

    fn update(&mut self, at: At, state: State) {
        self.disarm(at);
        if let Some(entry) = self.entries.get_mut(&at) {
            entry.state = state;
        }
        self.arm(at);
    }

    fn remove(&mut self, at: At) {
        self.disarm(at);
        let Some(entry) = self.entries.remove(&at) else { return };
        if let Some(of_key) = self.keys.get_mut(&entry.key) {
            of_key.remove(&at);
            if of_key.is_empty() {
                self.keys.remove(&entry.key);
            }
        }
        if let Some(next) = self.head(&entry.key) {
            self.arm(next);
        }
    }

    /// The first entry of a key.
    fn head(&self, key: &str) -> Option<At> {
        self.keys.get(key)?.first().copied()
    }

    fn disarm(&mut self, at: At) {
        if let Some(Entry { state: State::Waiting(due), .. }) = self.entries.get(&at) {
            self.timers.remove(&(*due, at));
        }
    }

    /// Puts the entry among the timers if it waits and nothing is before it, and takes it out
    /// otherwise.
    fn arm(&mut self, at: At) {
        let Some(entry) = self.entries.get(&at) else { return };
        let State::Waiting(due) = entry.state else { return };
        if self.head(&entry.key).is_none_or(|head| head == at) {
            self.timers.insert((due, at));
        } else {
            self.timers.remove(&(due, at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: i64) -> At {
        At { topic: 0, seq }
    }

    fn due(waiting: &mut Waiting, millis: i64) -> Vec<i64> {
        let mut due = Vec::new();
        waiting.take_due(Timestamp::from_millis(millis), 100, &mut due);
        due.into_iter().map(|at| at.seq).collect()
    }

    #[test]
    fn the_first_of_a_key_holds_the_others_back_and_no_other_key() {
        let mut waiting = Waiting::new(true);
        waiting.write(at(1), "a");
        assert!(waiting.holds("a", at(2)) && !waiting.holds("b", at(2)));
        waiting.again(at(1), Timestamp::from_millis(50));
        waiting.insert(at(2), "a", Timestamp::EPOCH);
        waiting.insert(at(3), "b", Timestamp::from_millis(10));
        assert_eq!(due(&mut waiting, 10), [3]);
        assert_eq!(waiting.next_due(), Some(Timestamp::from_millis(50)));
        assert_eq!(due(&mut waiting, 50), [1]);
        assert_eq!(due(&mut waiting, 99), [0_i64; 0]);
        waiting.done(at(1));
        assert_eq!(due(&mut waiting, 99), [2]);
        waiting.done(at(2));
        assert!(!waiting.holds("a", at(9)));
        assert_eq!(waiting.done_rows(), [at(1), at(2)]);
    }

    #[test]
    fn an_earlier_message_that_comes_to_wait_goes_first() {
        let mut waiting = Waiting::new(true);
        waiting.insert(at(5), "a", Timestamp::EPOCH);
        waiting.write(at(4), "a");
        assert_eq!(due(&mut waiting, 99), [0_i64; 0]);
        waiting.again(at(4), Timestamp::from_millis(1));
        assert_eq!(due(&mut waiting, 99), [4]);
        waiting.again(at(4), Timestamp::from_millis(200));
        assert_eq!(due(&mut waiting, 99), [0_i64; 0]);
        waiting.forget(at(4));
        assert_eq!(due(&mut waiting, 99), [5]);
    }

    #[test]
    fn claimed_entries_come_when_they_are_given_back() {
        let mut waiting = Waiting::new(false);
        waiting.insert(at(1), "a", Timestamp::MAX);
        waiting.insert(at(2), "a", Timestamp::MAX);
        waiting.insert(at(3), "a", Timestamp::from_millis(10));
        assert_eq!(due(&mut waiting, 10), [3]);
        waiting.refresh(vec![(at(1), "a".into(), Timestamp::EPOCH)]);
        assert_eq!(due(&mut waiting, 10), [1]);
        assert!(!waiting.contains(at(2)), "its row is gone");
    }

    #[test]
    fn without_order_or_key_each_is_on_its_own() {
        for (ordered, key) in [(false, "a"), (true, "")] {
            let mut waiting = Waiting::new(ordered);
            waiting.insert(at(1), key, Timestamp::from_millis(50));
            waiting.insert(at(2), key, Timestamp::from_millis(10));
            assert!(!waiting.holds(key, at(3)));
            assert_eq!(due(&mut waiting, 99), [2, 1]);
            waiting.gone(at(1));
            assert!(!waiting.contains(at(1)) && waiting.contains(at(2)));
        }
    }
}
