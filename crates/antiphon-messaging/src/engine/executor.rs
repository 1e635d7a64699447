//! Who runs next: at most one message per key in ordered groups, in the order of arrival, and never
//! more runs than the concurrency allows.
//!
//! A key is busy from the arrival of its first message until that message is settled, wherever it is
//! in the meantime (ready, running, waiting for a retry). What arrives for a busy key follows it.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::message::Message;

/// Hashes the same in every run, so that a simulation replays. Credits bound how many keys there
/// are, and with that what chosen collisions could cost.
pub(crate) type KeyMap<V> = HashMap<Key, V, BuildHasherDefault<DefaultHasher>>;

/// The key of a message, without a copy of it.
#[derive(Clone, Debug)]
pub(crate) struct Key(Arc<Message>);

impl Key {
    /// `None` for a message without a key: nothing orders it.
    pub(crate) fn of(message: &Arc<Message>) -> Option<Self> {
        (!message.key.is_empty()).then(|| Self(Arc::clone(message)))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

/// What the executor needs to know of an item.
pub(crate) trait Item {
    /// The message.
    fn message(&self) -> &Arc<Message>;
    /// Whether it must not share a run.
    fn is_alone(&self) -> bool;
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Executor<T> {
    ordered: bool,
    concurrency: usize,
    running: usize,
    /// Items that may start, each the head of its key.
    ready: VecDeque<T>,
    /// Busy keys, with what follows their head.
    busy: KeyMap<VecDeque<T>>,
}

impl<T: Item> Executor<T> {
    pub(crate) fn new(ordered: bool, concurrency: usize) -> Self {
        Self { ordered, concurrency, running: 0, ready: VecDeque::new(), busy: KeyMap::default() }
    }

    fn key(&self, item: &T) -> Option<Key> {
        if self.ordered { Key::of(item.message()) } else { None }
    }

    /// Takes in an item that has arrived.
    pub(crate) fn push(&mut self, item: T) {
        let Some(key) = self.key(&item) else {
            self.ready.push_back(item);
            return;
        };
        if let Some(followers) = self.busy.get_mut(&key) {
            followers.push_back(item);
        } else {
            self.busy.insert(key, VecDeque::new());
            self.ready.push_back(item);
        }
    }

    /// Takes back the head of a busy key, to run again before anything else.
    pub(crate) fn resume(&mut self, item: T) {
        self.ready.push_front(item);
    }

    /// Starts one run of at most `count_max` items, all of different keys where keys matter. `None`
    /// when nothing may start.
    pub(crate) fn start(&mut self, count_max: usize) -> Option<Vec<T>> {
        if self.running >= self.concurrency || self.ready.is_empty() {
            return None;
        }
        self.running += 1;
        let first_alone = self.ready.iter().take(count_max.max(1)).position(T::is_alone);
        let count = match first_alone {
            Some(0) => 1,
            Some(before) => before.min(count_max),
            None => count_max.min(self.ready.len()),
        };
        Some(self.ready.drain(..count.max(1)).collect())
    }

    /// Whether something could start if only it were there.
    pub(crate) fn is_idle(&self) -> bool {
        self.running < self.concurrency && self.ready.is_empty()
    }

    /// A run has ended. Its items stay the heads of their keys until [`Self::free`] or
    /// [`Self::give_up`].
    pub(crate) fn ended(&mut self) {
        self.running -= 1;
    }

    /// The head of this message's key is settled: the next one may start.
    pub(crate) fn free(&mut self, message: &Arc<Message>) {
        if !self.ordered {
            return;
        }
        let Some(key) = Key::of(message) else { return };
        let Some(followers) = self.busy.get_mut(&key) else {
            return;
        };
        match followers.pop_front() {
            Some(next) => self.ready.push_back(next),
            None => {
                self.busy.remove(&key);
            }
        }
    }

    /// The head of this message's key goes away to come back later: yields what followed it, which
    /// must go away as well. The key is no longer busy.
    pub(crate) fn give_up(&mut self, message: &Arc<Message>) -> Vec<T> {
        if !self.ordered {
            return Vec::new();
        }
        let followers = Key::of(message).and_then(|key| self.busy.remove(&key));
        followers.map(Vec::from).unwrap_or_default()
    }

    /// Takes out everything that has not started and that `which` names; `which` must name all
    /// messages of a key or none.
    pub(crate) fn take(&mut self, which: impl Fn(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        let mut kept = VecDeque::with_capacity(self.ready.len());
        for item in std::mem::take(&mut self.ready) {
            if !which(&item) {
                kept.push_back(item);
                continue;
            }
            let followers = self.key(&item).and_then(|key| self.busy.remove(&key));
            taken.push(item);
            taken.extend(followers.into_iter().flatten());
        }
        self.ready = kept;
        // Keys whose head is running or waiting stay busy.
        for followers in self.busy.values_mut() {
            if followers.front().is_some_and(&which) {
                taken.extend(followers.drain(..));
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use antiphon_core::{MessageId, Timestamp};
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug)]
    struct Numbered(Arc<Message>, u32);

    impl Item for Numbered {
        fn message(&self) -> &Arc<Message> {
            &self.0
        }
        fn is_alone(&self) -> bool {
            self.1 >= 100_000
        }
    }

    fn item(key: &str, number: u32) -> Numbered {
        let message = Message {
            id: MessageId::new(Timestamp::EPOCH),
            topic: String::new(),
            kind: String::new(),
            source: String::new(),
            key: key.to_owned(),
            time: Timestamp::EPOCH,
            not_before: None,
            attributes: BTreeMap::new(),
            body: bytes::Bytes::new(),
        };
        Numbered(Arc::new(message), number)
    }

    fn numbers(items: Vec<Numbered>) -> Vec<u32> {
        items.into_iter().map(|item| item.1).collect()
    }

    #[test]
    fn a_batch_has_one_message_of_each_key() {
        let mut executor = Executor::new(true, 2);
        for (n, key) in ["a", "b", "a", "c", "b"].into_iter().enumerate() {
            executor.push(item(key, u32::try_from(n).unwrap()));
        }
        assert_eq!(numbers(executor.start(8).unwrap()), [0, 1, 3]);
        assert!(executor.start(8).is_none());
    }

    #[test]
    fn messages_without_a_key_and_in_unordered_groups_do_not_wait() {
        let mut ordered = Executor::new(true, 1);
        let mut unordered = Executor::new(false, 1);
        for n in 0..3 {
            ordered.push(item("", n));
            unordered.push(item("same", n));
        }
        assert_eq!(numbers(ordered.start(8).unwrap()), [0, 1, 2]);
        assert_eq!(numbers(unordered.start(8).unwrap()), [0, 1, 2]);
    }

    #[test]
    fn what_is_to_run_alone_shares_no_batch() {
        let mut executor = Executor::new(true, 9);
        for (key, number) in [("a", 0), ("b", 1), ("c", 100_000), ("d", 100_001), ("e", 2)] {
            executor.push(item(key, number));
        }
        let runs: Vec<Vec<u32>> = std::iter::from_fn(|| executor.start(8)).map(numbers).collect();
        assert_eq!(runs, [vec![0, 1], vec![100_000], vec![100_001], vec![2]]);
    }

    #[test]
    fn followers_leave_with_their_head_and_the_key_is_free_again() {
        let mut executor = Executor::new(true, 1);
        (0..3).for_each(|n| executor.push(item("a", n)));
        let head = executor.start(1).unwrap().remove(0);
        executor.ended();
        assert_eq!(numbers(executor.give_up(&head.0)), [1, 2]);
        executor.push(item("a", 3));
        assert_eq!(numbers(executor.start(1).unwrap()), [3]);
    }

    #[test]
    fn what_is_taken_out_leaves_running_heads_busy() {
        let mut executor = Executor::new(true, 1);
        for (n, key) in ["a", "a", "b", "b"].into_iter().enumerate() {
            executor.push(item(key, u32::try_from(n).unwrap()));
        }
        let head = executor.start(1).unwrap().remove(0);
        let taken: BTreeSet<u32> = numbers(executor.take(|_| true)).into_iter().collect();
        assert_eq!(taken, BTreeSet::from([1, 2, 3]));
        executor.push(item("a", 4));
        executor.push(item("b", 5));
        executor.ended();
        assert_eq!(numbers(executor.start(8).unwrap()), [5], "a's head is not settled");
        executor.ended();
        executor.free(&head.0);
        assert_eq!(numbers(executor.start(8).unwrap()), [4]);
    }

    /// What happens to a run's item, chosen at random.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push(u8),
        Start(usize),
        Settle(usize),
        Retry(usize),
        Resume(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..4_u8).prop_map(Step::Push),
            (1..4_usize).prop_map(Step::Start),
            (0..8_usize).prop_map(Step::Settle),
            (0..8_usize).prop_map(Step::Retry),
            (0..8_usize).prop_map(Step::Resume),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// Never two of a key at a time, never more runs than allowed, per key in the order of
        /// arrival, and everything is settled once in the end.
        #[test]
        fn order_and_limits_hold_whatever_happens(steps in steps()) {
            let mut executor = Executor::new(true, 3);
            let mut running: Vec<Vec<Numbered>> = Vec::new();
            let mut waiting: Vec<Numbered> = Vec::new();
            let mut settled: BTreeMap<String, Vec<u32>> = BTreeMap::new();
            let mut pushed = 0;
            // After the chosen steps, everything is brought to an end.
            let finish = (0..600).map(|n| match n % 3 {
                0 => Step::Resume(0),
                1 => Step::Start(2),
                _ => Step::Settle(0),
            });
            for step in steps.into_iter().chain(finish) {
                match step {
                    Step::Push(key) => {
                        executor.push(item(&format!("key-{key}"), pushed));
                        pushed += 1;
                    }
                    Step::Start(count) => running.extend(executor.start(count)),
                    Step::Settle(n) if n < running.len() => {
                        executor.ended();
                        for item in running.remove(n) {
                            settled.entry(item.0.key.clone()).or_default().push(item.1);
                            executor.free(&item.0);
                        }
                    }
                    Step::Retry(n) if n < running.len() => {
                        executor.ended();
                        waiting.extend(running.remove(n));
                    }
                    Step::Resume(n) if n < waiting.len() => {
                        executor.resume(waiting.remove(n));
                    }
                    _ => {}
                }
                prop_assert!(running.len() <= 3);
                let busy = running.iter().flatten().chain(&waiting);
                let mut keys = BTreeSet::new();
                for item in busy {
                    prop_assert!(keys.insert(item.0.key.clone()), "two of {}", item.0.key);
                }
            }
            for numbers in settled.values() {
                prop_assert!(numbers.is_sorted(), "{numbers:?}");
            }
            let count: usize = settled.values().map(Vec::len).sum();
            prop_assert_eq!(u32::try_from(count).unwrap(), pushed);
        }
    }
}
