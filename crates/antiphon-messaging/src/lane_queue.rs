//! What a consumer holds of one lane that it alone reads: in which order messages are handed out, and
//! up to where everything is done. For adapters whose broker does not keep this itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

use crate::message::Message;

/// A message to hand out.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Its place in the lane.
    pub position: u64,
    /// The message.
    pub message: Arc<Message>,
    /// How many attempts were made before.
    pub attempts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// In somebody's hands.
    Out,
    Waiting(Instant),
    /// An earlier message of its key waits.
    Blocked,
}

#[derive(Debug)]
struct Held {
    message: Arc<Message>,
    attempts: u32,
    state: State,
}

/// A key that waits because one of its messages does.
#[derive(Debug, Default)]
struct Stopped {
    waiting: BTreeSet<u64>,
    blocked: BTreeSet<u64>,
}

/// The messages of one lane that were read and are not settled, by position.
///
/// Always the lowest position that may go is handed out next. A message that waits for its retry
/// holds back the later ones of its key, and of no other.
#[derive(Debug, Default)]
pub struct LaneQueue {
    held: BTreeMap<u64, Held>,
    ready: BTreeSet<u64>,
    waiting: BTreeSet<(Instant, u64)>,
    stopped: HashMap<String, Stopped>,
    out: usize,
}

impl LaneQueue {
    /// Adds a message that was read. One whose position is held already is ignored.
    pub fn push(&mut self, position: u64, message: Arc<Message>, attempts: u32) {
        if let std::collections::btree_map::Entry::Vacant(free) = self.held.entry(position) {
            free.insert(Held { message, attempts, state: State::Ready });
            self.ready.insert(position);
        }
    }

    /// The next message to hand out.
    pub fn take(&mut self) -> Option<Taken> {
        while let Some(position) = self.ready.pop_first() {
            let held = self.held.get_mut(&position)?;
            if !self.stopped.is_empty()
                && let Some(stopped) = self.stopped.get_mut(&held.message.key)
                && stopped.waiting.first().is_some_and(|first| *first < position)
            {
                held.state = State::Blocked;
                stopped.blocked.insert(position);
                continue;
            }
            held.state = State::Out;
            self.out += 1;
            let (message, attempts) = (Arc::clone(&held.message), held.attempts);
            return Some(Taken { position, message, attempts });
        }
        None
    }

    /// It is done; whether it was in somebody's hands.
    pub fn done(&mut self, position: u64) -> bool {
        if !self.is_out(position) {
            return false;
        }
        self.held.remove(&position);
        self.out -= 1;
        true
    }

    /// It comes back and may go again at once; whether it was in somebody's hands.
    pub fn give_back(&mut self, position: u64) -> bool {
        let Some(held) = self.held.get_mut(&position).filter(|held| held.state == State::Out)
        else {
            return false;
        };
        held.state = State::Ready;
        self.ready.insert(position);
        self.out -= 1;
        true
    }

    /// It comes back and waits, with this many attempts in all; whether it was in somebody's hands.
    pub fn wait(&mut self, position: u64, until: Instant, attempts: u32) -> bool {
        let Some(held) = self.held.get_mut(&position).filter(|held| held.state == State::Out)
        else {
            return false;
        };
        held.state = State::Waiting(until);
        held.attempts = attempts;
        let key = &held.message.key;
        if !key.is_empty() {
            self.stopped.entry(key.clone()).or_default().waiting.insert(position);
        }
        self.waiting.insert((until, position));
        self.out -= 1;
        true
    }

    /// Lets those go whose wait is over.
    pub fn advance(&mut self, now: Instant) {
        while let Some(&(until, position)) = self.waiting.first() {
            if until > now {
                return;
            }
            self.waiting.pop_first();
            self.resume(position);
        }
    }

    fn resume(&mut self, position: u64) {
        let Some(held) = self.held.get_mut(&position) else { return };
        held.state = State::Ready;
        self.ready.insert(position);
        let key = held.message.key.clone();
        let Some(stopped) = self.stopped.get_mut(&key) else { return };
        stopped.waiting.remove(&position);
        // Those that still follow one that waits are stopped again when it is their turn.
        for follower in std::mem::take(&mut stopped.blocked) {
            if let Some(held) = self.held.get_mut(&follower) {
                held.state = State::Ready;
                self.ready.insert(follower);
            }
        }
        if stopped.waiting.is_empty() {
            self.stopped.remove(&key);
        }
    }

    /// When the next wait is over.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// How many attempts were made of a message that is held.
    #[must_use]
    pub fn attempts(&self, position: u64) -> Option<u32> {
        self.held.get(&position).map(|held| held.attempts)
    }

    /// The messages of which attempts were made, with how many.
    pub fn attempted(&self) -> impl Iterator<Item = (u64, u32)> {
        let attempted = self.held.iter().filter(|(_, held)| held.attempts > 0);
        attempted.map(|(position, held)| (*position, held.attempts))
    }

    /// Whether a message is in somebody's hands.
    #[must_use]
    pub fn is_out(&self, position: u64) -> bool {
        self.held.get(&position).is_some_and(|held| held.state == State::Out)
    }

    /// How many are in somebody's hands.
    #[must_use]
    pub fn out(&self) -> usize {
        self.out
    }

    /// How many wait for a retry.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The lowest position that is held.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.held.first_key_value().map(|(position, _)| *position)
    }
}

/// Up to where everything of a lane is done, and what is done beyond. Positions rise but need not
/// follow each other: what lies between two of them belongs to other lanes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    /// Everything up to here is done.
    floor: u64,
    /// The highest position that was read.
    read: u64,
    /// Done above the floor.
    done: BTreeSet<u64>,
}

impl Frontier {
    /// As it was kept: everything up to `floor` is done, and so is `done`.
    #[must_use]
    pub fn new(floor: u64, done: impl IntoIterator<Item = u64>) -> Self {
        let done = done.into_iter().filter(|position| *position > floor).collect();
        Self { floor, read: floor, done }
    }

    /// Everything up to here is done.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// The highest position that was read; reading goes on after it.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.read
    }

    /// What is done above the floor.
    #[must_use]
    pub fn done_above(&self) -> &BTreeSet<u64> {
        &self.done
    }

    /// A position was read; whether it is new and still has to be done.
    pub fn reading(&mut self, position: u64) -> bool {
        if position <= self.read {
            return false;
        }
        self.read = position;
        !self.done.contains(&position)
    }

    /// Everything up to here was looked at, and what of it is this lane's was read; `held` is the lowest
    /// of it that is not done.
    pub fn pass(&mut self, position: u64, held: Option<u64>) {
        self.read = self.read.max(position);
        self.settle(held);
    }

    /// A position is done; `held` is the lowest that was read and is not.
    pub fn finish(&mut self, position: u64, held: Option<u64>) {
        if position > self.floor {
            self.done.insert(position);
        }
        self.settle(held);
    }

    /// Moves the floor as far as it may go; `held` is the lowest that was read and is not done.
    pub fn settle(&mut self, held: Option<u64>) {
        let floor = held.map_or(self.read, |held| held.saturating_sub(1));
        if floor > self.floor {
            self.floor = floor;
            self.done = self.done.split_off(&(floor + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use antiphon_core::{MessageId, Timestamp};
    use proptest::prelude::{any, prop};

    use super::*;

    fn message(key: &str) -> Arc<Message> {
        Arc::new(Message {
            id: MessageId::new(Timestamp::EPOCH),
            topic: String::new(),
            kind: String::new(),
            source: String::new(),
            key: key.to_owned(),
            time: Timestamp::EPOCH,
            not_before: None,
            attributes: BTreeMap::new(),
            body: bytes::Bytes::new(),
        })
    }

    fn queue(keys: &[&str]) -> LaneQueue {
        let mut queue = LaneQueue::default();
        for (position, key) in (1_u64..).zip(keys) {
            queue.push(position, message(key), 0);
        }
        queue
    }

    fn take_all(queue: &mut LaneQueue) -> Vec<u64> {
        std::iter::from_fn(|| queue.take()).map(|taken| taken.position).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_holds_back_its_key_and_no_other() {
        let mut queue = queue(&["a", "b", "a", "b"]);
        let now = Instant::now();
        assert_eq!(queue.take().map(|taken| taken.position), Some(1));
        assert!(queue.wait(1, now + Duration::from_secs(1), 3));
        assert_eq!(take_all(&mut queue), [2, 4]);
        queue.push(5, message("a"), 0);
        queue.push(6, message("c"), 0);
        assert_eq!(take_all(&mut queue), [6]);
        queue.advance(now);
        assert_eq!(take_all(&mut queue), [0_u64; 0]);
        queue.advance(now + Duration::from_secs(1));
        let first = queue.take().expect("its wait is over");
        assert_eq!((first.position, first.attempts), (1, 3));
        assert_eq!(take_all(&mut queue), [3, 5]);
        assert_eq!(queue.next_due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn two_that_wait_keep_their_order() {
        let mut queue = queue(&["a", "a", "a"]);
        let now = Instant::now();
        assert_eq!(take_all(&mut queue), [1, 2, 3]);
        // The second is due before the first, which holds it back all the same.
        assert!(queue.wait(1, now + Duration::from_secs(2), 1));
        assert!(queue.wait(2, now + Duration::from_secs(1), 0));
        assert!(queue.give_back(3));
        queue.advance(now + Duration::from_secs(1));
        assert_eq!(take_all(&mut queue), [0_u64; 0]);
        queue.advance(now + Duration::from_secs(2));
        assert_eq!(take_all(&mut queue), [1, 2, 3]);
    }

    #[test]
    fn what_is_given_back_in_any_order_comes_in_order() {
        let mut queue = queue(&["a", "a", "a", "a"]);
        assert_eq!(queue.take().map(|taken| taken.position), Some(1));
        assert_eq!(queue.take().map(|taken| taken.position), Some(2));
        assert!(queue.give_back(2) && queue.give_back(1));
        assert!(!queue.give_back(1), "it is in nobody's hands");
        assert_eq!(take_all(&mut queue), [1, 2, 3, 4]);
        assert!(queue.done(2) && !queue.done(2));
        assert_eq!((queue.out(), queue.len(), queue.first()), (3, 3, Some(1)));
    }

    #[test]
    fn a_lane_without_messages_keeps_up_with_the_others() {
        let mut frontier = Frontier::new(5, []);
        frontier.pass(9, None);
        assert_eq!((frontier.floor(), frontier.read()), (9, 9));
        assert!(frontier.reading(12));
        frontier.pass(20, Some(12));
        assert_eq!((frontier.floor(), frontier.read()), (11, 20));
    }

    proptest::proptest! {
        /// Whatever the order in which messages are done: the floor never passes one that is not,
        /// what is kept says exactly what is done, and in the end everything is below the floor.
        #[test]
        fn the_floor_never_passes_what_is_not_done(
            gaps in prop::collection::vec(1_u64..5, 1..60),
            order in prop::collection::vec(any::<prop::sample::Index>(), 60),
        ) {
            let mut position = 0;
            let all: Vec<u64> = gaps.iter().map(|gap| { position += gap; position }).collect();
            let mut frontier = Frontier::new(0, []);
            let mut open: BTreeSet<u64> = BTreeSet::new();
            for position in &all {
                assert!(frontier.reading(*position));
                open.insert(*position);
            }
            for index in &order {
                if open.is_empty() { break; }
                let list: Vec<u64> = open.iter().copied().collect();
                let position = *index.get(&list);
                open.remove(&position);
                frontier.finish(position, open.first().copied());
                let mut again = Frontier::new(frontier.floor(), frontier.done_above().iter().copied());
                for position in &all {
                    let needed = *position > again.floor() && again.reading(*position);
                    assert_eq!(needed, open.contains(position));
                }
            }
            if open.is_empty() {
                assert_eq!((frontier.floor(), frontier.done_above().len()), (position, 0));
            }
        }
    }
}
