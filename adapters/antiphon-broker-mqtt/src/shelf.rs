//! The messages that a member has and has not acknowledged, and which of them may be handed out.
//!
//! MQTT has no way to give a message back but to end the connection. So what is released, or waits
//! for a retry, stays here, unacknowledged: a crash brings it back to the broker, and nothing else
//! has to. In an ordered group a message that waits holds back the later ones of its key, and no
//! other. Pure: times come in, nothing is awaited.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::MessageId;
use antiphon_messaging::Message;
use tokio::time::Instant;

/// See the module.
#[derive(Debug)]
pub(crate) struct Shelf {
    ordered: bool,
    next: u64,
    /// By token, which is the order of receipt.
    entries: BTreeMap<u64, Entry>,
    lanes: Vec<Lane>,
    /// Where the next hand-out begins, so that every lane gets its turn.
    turn: usize,
    waiting: BTreeSet<(Instant, u64)>,
    holds: HashMap<Key, Hold>,
}

#[derive(Debug)]
struct Entry {
    lane: u32,
    packet: u16,
    message: Arc<Message>,
    attempt: u32,
    /// Whether the broker has a note of its tries.
    noted: bool,
    place: Place,
}

/// What is known of tries with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tried {
    /// How many were made.
    pub(crate) attempts: u32,
    /// When the next one may be, if that is to come.
    pub(crate) due: Option<Instant>,
}

/// What was done.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) lane: u32,
    pub(crate) packet: u16,
    /// The id, if the broker has a note of its tries.
    pub(crate) noted: Option<MessageId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Ready,
    /// Behind one of its key that waits.
    Behind,
    /// In the hands of the consumer.
    Out,
    Waiting(Instant),
}

#[derive(Debug, Default)]
struct Lane {
    ready: BTreeSet<u64>,
    out: usize,
    paused: bool,
}

/// Topic and key.
type Key = (String, String);

/// What waits of one key, and what waits behind it.
#[derive(Debug, Default)]
struct Hold {
    waiting: BTreeSet<u64>,
    behind: BTreeSet<u64>,
}

/// One message that is handed out.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) token: u64,
    pub(crate) lane: u32,
    pub(crate) attempt: u32,
    pub(crate) message: Arc<Message>,
}

impl Shelf {
    pub(crate) fn new(ordered: bool, lanes: u32) -> Self {
        Self {
            ordered,
            next: 0,
            entries: BTreeMap::new(),
            lanes: (0..lanes).map(|_| Lane { paused: true, ..Lane::default() }).collect(),
            turn: 0,
            waiting: BTreeSet::new(),
            holds: HashMap::new(),
        }
    }

    /// Takes in a message that has come with this packet id, and what is known of tries with it.
    pub(crate) fn put(&mut self, lane: u32, packet: u16, message: Message, tried: Option<Tried>) {
        let token = self.next;
        self.next += 1;
        let attempt = tried.map_or(1, |tried| tried.attempts.saturating_add(1));
        let (message, place, noted) = (Arc::new(message), Place::Ready, tried.is_some());
        let entry = Entry { lane, packet, message, attempt, noted, place };
        self.entries.insert(token, entry);
        match tried.and_then(|tried| tried.due) {
            Some(due) => self.wait(token, due),
            None => self.place(token),
        }
    }

    /// Hands out at most `count`, of all lanes in turn.
    pub(crate) fn take(&mut self, count: usize, now: Instant) -> Vec<Taken> {
        self.wake(now);
        let mut taken = Vec::new();
        let mut idle = 0;
        while taken.len() < count && idle < self.lanes.len() {
            let index = self.turn;
            self.turn = (self.turn + 1) % self.lanes.len();
            let lane = &mut self.lanes[index];
            let token = if lane.paused { None } else { lane.ready.pop_first() };
            let Some((token, entry)) =
                token.and_then(|token| Some((token, self.entries.get_mut(&token)?)))
            else {
                idle += 1;
                continue;
            };
            idle = 0;
            lane.out += 1;
            entry.place = Place::Out;
            let message = Arc::clone(&entry.message);
            taken.push(Taken { token, lane: entry.lane, attempt: entry.attempt, message });
        }
        taken
    }

    /// When something that waits is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// Removes what was handed out and is done.
    pub(crate) fn finish(&mut self, token: u64) -> Option<Finished> {
        let entry = self.entries.get(&token).filter(|entry| entry.place == Place::Out)?;
        let (lane, packet) = (entry.lane, entry.packet);
        let noted = entry.noted.then_some(entry.message.id);
        self.entries.remove(&token);
        self.lane(lane).out -= 1;
        Some(Finished { lane, packet, noted })
    }

    /// Takes back what was handed out, to be handed out again `after` this time; yields its lane,
    /// its id, and how many attempts were made with it.
    pub(crate) fn give_back(
        &mut self,
        token: u64,
        after: Duration,
        attempts: u32,
        now: Instant,
    ) -> Option<(u32, MessageId, u32)> {
        let entry = self.entries.get_mut(&token).filter(|entry| entry.place == Place::Out)?;
        entry.attempt = entry.attempt.saturating_add(attempts);
        entry.noted |= attempts > 0 || !after.is_zero();
        let (lane, id, made) = (entry.lane, entry.message.id, entry.attempt - 1);
        self.lane(lane).out -= 1;
        if after.is_zero() {
            self.place(token);
        } else {
            self.wait(token, now + after);
        }
        Some((lane, id, made))
    }

    /// Whether messages of this lane may be handed out.
    pub(crate) fn pause(&mut self, lane: u32, paused: bool) {
        self.lane(lane).paused = paused;
    }

    pub(crate) fn is_paused(&self, lane: u32) -> bool {
        self.lanes[index(lane)].paused
    }

    /// How many of this lane are in the hands of the consumer.
    pub(crate) fn out(&self, lane: u32) -> usize {
        self.lanes[index(lane)].out
    }

    /// Forgets a lane: its messages are the broker's again.
    pub(crate) fn clear(&mut self, lane: u32) {
        let gone: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.lane == lane)
            .map(|(token, _)| *token)
            .collect();
        for token in gone {
            let Some(entry) = self.entries.remove(&token) else { continue };
            if let Place::Waiting(due) = entry.place {
                self.waiting.remove(&(due, token));
            }
            if let Some(key) = key_of(self.ordered, &entry.message) {
                // A key is in one lane, so all that is held of it goes as well.
                self.holds.remove(&key);
            }
        }
        *self.lane(lane) = Lane { paused: true, ..Lane::default() };
    }

    /// Forgets everything.
    pub(crate) fn clear_all(&mut self) {
        for lane in 0..self.lanes.len() {
            self.clear(u32::try_from(lane).unwrap_or(u32::MAX));
        }
    }

    /// Makes ready what is due.
    fn wake(&mut self, now: Instant) {
        while let Some((due, token)) = self.waiting.first().copied() {
            if due > now {
                return;
            }
            self.waiting.pop_first();
            let key = self.entries.get(&token).and_then(|e| key_of(self.ordered, &e.message));
            let behind = key.and_then(|key| {
                let hold = self.holds.get_mut(&key)?;
                hold.waiting.remove(&token);
                let behind = std::mem::take(&mut hold.behind);
                if hold.waiting.is_empty() {
                    self.holds.remove(&key);
                }
                Some(behind)
            });
            self.place(token);
            for token in behind.into_iter().flatten() {
                self.place(token);
            }
        }
    }

    /// Makes it ready, or puts it behind an earlier one of its key that waits.
    fn place(&mut self, token: u64) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        if !self.holds.is_empty()
            && let Some(key) = key_of(self.ordered, &entry.message)
            && let Some(hold) = self.holds.get_mut(&key)
            && hold.waiting.first().is_some_and(|first| *first < token)
        {
            hold.behind.insert(token);
            entry.place = Place::Behind;
        } else {
            entry.place = Place::Ready;
            self.lanes[index(entry.lane)].ready.insert(token);
        }
    }

    /// Lets it wait, and with it what follows of its key.
    fn wait(&mut self, token: u64, due: Instant) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.place = Place::Waiting(due);
        let lane = index(entry.lane);
        self.waiting.insert((due, token));
        let Some(key) = key_of(self.ordered, &entry.message) else { return };
        let followers: Vec<u64> = self.lanes[lane]
            .ready
            .range(token..)
            .copied()
            .filter(|follower| {
                let follower = self.entries.get(follower);
                follower.is_some_and(|f| f.message.key == key.1 && f.message.topic == key.0)
            })
            .collect();
        self.holds.entry(key).or_default().waiting.insert(token);
        for follower in followers {
            self.lanes[lane].ready.remove(&follower);
            self.place(follower);
        }
    }

    fn lane(&mut self, lane: u32) -> &mut Lane {
        &mut self.lanes[index(lane)]
    }
}

fn key_of(ordered: bool, message: &Message) -> Option<Key> {
    (ordered && !message.key.is_empty()).then(|| (message.topic.clone(), message.key.clone()))
}

fn index(lane: u32) -> usize {
    usize::try_from(lane).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use antiphon_core::Timestamp;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn message(key: &str, text: &str) -> Message {
        Message {
            id: MessageId::new(Timestamp::from_millis(1)),
            topic: "t".into(),
            kind: "k".into(),
            source: "s".into(),
            key: key.into(),
            time: Timestamp::EPOCH,
            not_before: None,
            attributes: BTreeMap::default(),
            body: text.to_owned().into(),
        }
    }

    fn shelf(ordered: bool, messages: &[(&str, &str)]) -> Shelf {
        let mut shelf = Shelf::new(ordered, 2);
        for (n, (key, text)) in messages.iter().enumerate() {
            shelf.put(0, u16::try_from(n).expect("few") + 1, message(key, text), None);
        }
        shelf.pause(0, false);
        shelf
    }

    fn texts(taken: &[Taken]) -> Vec<&str> {
        taken.iter().map(|one| std::str::from_utf8(&one.message.body).expect("text")).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_holds_back_its_key_and_no_other() {
        let messages = [("bad", "1"), ("bad", "2"), ("good", "3"), ("bad", "4")];
        let mut shelf = shelf(true, &messages);
        let now = Instant::now();
        let held = shelf.take(2, now);
        assert_eq!(texts(&held), ["1", "2"]);
        let back = shelf.give_back(held[0].token, SECOND, 1, now);
        assert_eq!(back, Some((0, held[0].message.id, 1)));
        assert!(shelf.give_back(held[1].token, Duration::ZERO, 0, now).is_some());
        shelf.put(0, 9, message("bad", "5"), None);
        assert_eq!(texts(&shelf.take(9, now)), ["3"]);
        assert_eq!(shelf.next_due(), Some(now + SECOND));
        let again = shelf.take(9, now + SECOND);
        assert_eq!(texts(&again), ["1", "2", "4", "5"]);
        assert_eq!(again.iter().map(|one| one.attempt).collect::<Vec<_>>(), [2, 1, 1, 1]);
        assert!(shelf.holds.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn without_order_nothing_waits_for_another() {
        let mut shelf = shelf(false, &[("bad", "1"), ("bad", "2")]);
        let now = Instant::now();
        let held = shelf.take(1, now);
        shelf.give_back(held[0].token, SECOND, 1, now);
        assert_eq!(texts(&shelf.take(9, now)), ["2"]);
        assert_eq!(texts(&shelf.take(9, now + SECOND)), ["1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_in_any_order_comes_again_in_order() {
        let numbers: Vec<String> = (0..10).map(|n| n.to_string()).collect();
        let messages: Vec<_> = numbers.iter().map(|n| ("k", &**n)).collect();
        let mut shelf = shelf(true, &messages);
        let now = Instant::now();
        let held = shelf.take(5, now);
        for one in held.iter().rev() {
            shelf.give_back(one.token, Duration::ZERO, 0, now);
        }
        assert_eq!(texts(&shelf.take(10, now)), numbers);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_counts_once() {
        let mut shelf = shelf(true, &[("a", "1"), ("b", "2")]);
        let now = Instant::now();
        let token = shelf.take(1, now)[0].token;
        assert_eq!(shelf.out(0), 1);
        let done = shelf.finish(token).expect("it is out");
        assert_eq!((done.lane, done.packet, done.noted), (0, 1, None));
        assert!(shelf.finish(token).is_none());
        assert!(shelf.give_back(token, SECOND, 1, now).is_none());
        assert!(shelf.finish(token + 1).is_none(), "what is not out cannot be settled");
        assert_eq!(shelf.out(0), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_lane_is_not_handed_out_and_a_cleared_one_is_forgotten() {
        let mut shelf = shelf(true, &[("a", "1"), ("b", "2"), ("b", "3")]);
        shelf.put(1, 7, message("c", "other lane"), None);
        shelf.pause(1, false);
        let now = Instant::now();
        shelf.pause(0, true);
        assert_eq!(texts(&shelf.take(9, now)), ["other lane"]);
        shelf.pause(0, false);
        let held = shelf.take(2, now);
        shelf.give_back(held[1].token, SECOND, 1, now);
        shelf.clear(0);
        assert!(shelf.finish(held[0].token).is_none(), "its deliveries are stale");
        assert_eq!((shelf.next_due(), shelf.out(0), shelf.out(1)), (None, 0, 1));
        assert!(shelf.holds.is_empty() && shelf.is_paused(0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_of_a_message_is_kept_when_it_comes_again() {
        let mut shelf = shelf(true, &[]);
        let now = Instant::now();
        let tried = Tried { attempts: 4, due: Some(now + SECOND) };
        shelf.put(0, 1, message("k", "tried"), Some(tried));
        shelf.put(0, 2, message("k", "behind"), None);
        assert!(shelf.take(9, now).is_empty());
        let taken = shelf.take(9, now + SECOND);
        assert_eq!(texts(&taken), ["tried", "behind"]);
        assert_eq!((taken[0].attempt, taken[1].attempt), (5, 1));
        let done = shelf.finish(taken[0].token).expect("it is out");
        assert_eq!(done.noted, Some(taken[0].message.id), "so that the note can go");
    }

    #[tokio::test(start_paused = true)]
    async fn every_lane_gets_its_turn() {
        let mut shelf = shelf(true, &[("a", "1"), ("a", "2"), ("a", "3")]);
        shelf.put(1, 7, message("c", "other"), None);
        shelf.pause(1, false);
        assert_eq!(texts(&shelf.take(2, Instant::now())), ["1", "other"]);
    }
}
