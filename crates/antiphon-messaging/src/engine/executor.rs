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
        Self {
            ordered,
            concurrency,
            running: 0,
            ready: VecDeque::new(),
            busy: KeyMap::default(),
        }
    }

    fn key(&self, item: &T) -> Option<Key> {
        if self.ordered {
            Key::of(item.message())
        } else {
            None
        }
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
        let count = count_max.max(1).min(self.ready.len());
        Some(self.ready.drain(..count).collect())
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
