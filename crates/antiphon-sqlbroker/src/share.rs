//! What one member of a group holds: its lanes, how far each has come, what is in whose hands.
//!
//! No waiting and no database here: the driver (`member`) feeds it what was read and written, and
//! does what it answers. A message is named by its position: topic and sequence number.
//!
//! A message of a held lane is in exactly one place: beyond what was scanned; `ready` to be handed
//! out; `held` by the consumer; or in the lane's [`Waiting`]. Until it is settled for good or
//! written to the table of waiting messages, its position is in the lane's `open`, so whoever takes
//! over the lane gets it again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::{DeadReason, LANES, Message, Settlement};
use tokio::time::Instant;

use crate::waiting::Waiting;

/// Where a message lies: the index of the topic in the subscription, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    /// The index of the topic.
    pub topic: usize,
    /// The position in its log.
    pub seq: i64,
}

/// A message on its way to the consumer.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Its lane.
    pub lane: u32,
    /// Where it is.
    pub at: At,
    /// How many attempts were made before.
    pub attempts: u32,
    /// Whether its row is in the table of waiting messages.
    pub waited: bool,
    /// Whether its lane was given away while it was in the consumer's hands.
    pub claimed: bool,
    /// The message.
    pub message: Arc<Message>,
}

impl Ready {
    /// A message as it is read from a log, for the first time.
    #[must_use]
    pub fn new(lane: u32, at: At, message: Arc<Message>) -> Self {
        Self { lane, at, attempts: 0, waited: false, claimed: false, message }
    }

    /// A message as it is read from the table of waiting messages.
    #[must_use]
    pub fn again(lane: u32, at: At, attempts: u32, message: Arc<Message>) -> Self {
        Self { attempts, waited: true, ..Self::new(lane, at, message) }
    }
}

/// How far a lane of one topic has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cursor {
    /// Everything up to here was scanned...
    pub(crate) position: i64,
    /// ...and settled, except these.
    pub(crate) open: BTreeSet<i64>,
    /// Whether something was settled since it was written last.
    pub(crate) dirty: bool,
    /// The position that was written last.
    pub(crate) written: i64,
}

impl Cursor {
    pub(crate) fn new(position: i64, open: BTreeSet<i64>) -> Self {
        Self { position, open, dirty: false, written: position }
    }

    fn settle(&mut self, seq: i64) {
        self.dirty |= self.open.remove(&seq);
    }

    /// The first position that is still needed.
    pub(crate) fn low(&self) -> i64 {
        self.open.first().copied().unwrap_or(self.position + 1)
    }
}

/// A lane that this member has the lease on.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) token: i64,
    /// By when the lease ends unless renewed, by this process's own clock.
    pub(crate) until: Instant,
    /// By topic.
    pub(crate) cursors: Vec<Cursor>,
    /// Being given back: nothing more is handed out.
    pub(crate) leaving: bool,
    pub(crate) waiting: Waiting,
    held: usize,
}

/// The whole of it.
#[derive(Debug)]
pub(crate) struct Share {
    ordered: bool,
    lanes: Vec<Option<Lane>>,
    /// How far each topic was scanned, for all lanes.
    scanned: Vec<i64>,
    /// Changes with the set of lanes: what was read for another set is not used.
    generation: u64,
    /// By topic, so that a busy one does not starve the others.
    ready: Vec<BTreeMap<i64, Ready>>,
    next_topic: usize,
    held: HashMap<u64, Ready>,
    next_token: u64,
}

/// What to read from the logs.
#[derive(Clone, Debug)]
pub struct Scan {
    generation: u64,
    /// After which position, by topic.
    pub after: Vec<i64>,
    /// After which position each lane wants messages, by topic and lane; `i64::MAX` for none.
    pub wanted: Vec<[i64; LANES as usize]>,
}

/// A message that must be written to the table of waiting messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Park {
    pub(crate) lane: u32,
    pub(crate) token: i64,
    pub(crate) at: At,
    pub(crate) key: String,
    pub(crate) due: Timestamp,
    pub(crate) attempts: u32,
    pub(crate) waited: bool,
}

/// A message that must be written to the dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bury {
    pub(crate) lane: u32,
    pub(crate) token: i64,
    pub(crate) at: At,
    pub(crate) waited: bool,
    pub(crate) key: String,
    pub(crate) id: MessageId,
    pub(crate) reason: DeadReason,
}

/// What a settlement asks of the driver.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The lane is somebody else's by now.
    Stale,
    /// Nothing; the next flush tells.
    Noted,
    /// Write it to the table of waiting messages, then call [`Share::parked`].
    Park(Park),
    /// Its lane was given away; settle it by its row.
    Claimed { lane: u32, at: At, attempts: u32, id: MessageId, settlement: Settlement },
    /// Write it to the dead letters, then call [`Share::buried`].
    Bury(Bury),
}

impl Scan {
    /// Whether any lane wants messages of this topic.
    #[must_use]
    pub fn wants(&self, topic: usize) -> bool {
        self.wanted.get(topic).is_some_and(|wanted| wanted.iter().any(|after| *after != i64::MAX))
    }

    /// Whether this message is wanted.
    #[must_use]
    pub fn is_wanted(&self, lane: u32, at: At) -> bool {
        let after = self.wanted.get(at.topic).and_then(|wanted| wanted.get(lane as usize));
        after.is_some_and(|after| at.seq > *after)
    }
}

impl Share {
    pub(crate) fn new(ordered: bool, topics: usize) -> Self {
        Self {
            ordered,
            lanes: (0..LANES).map(|_| None).collect(),
            scanned: vec![i64::MAX; topics],
            generation: 0,
            ready: vec![BTreeMap::new(); topics],
            next_topic: 0,
            held: HashMap::new(),
            next_token: 1,
        }
    }

    pub(crate) fn lane(&self, lane: u32) -> Option<&Lane> {
        self.lanes.get(lane as usize)?.as_ref()
    }

    pub(crate) fn lane_mut(&mut self, lane: u32) -> Option<&mut Lane> {
        self.lanes.get_mut(lane as usize)?.as_mut()
    }

    /// The lanes that are held, with their numbers.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = (u32, &Lane)> {
        (0..).zip(&self.lanes).filter_map(|(number, lane)| Some((number, lane.as_ref()?)))
    }

    pub(crate) fn lanes_mut(&mut self) -> impl Iterator<Item = (u32, &mut Lane)> {
        (0..).zip(&mut self.lanes).filter_map(|(number, lane)| Some((number, lane.as_mut()?)))
    }

    /// Takes a lane over, with what is known of it; `again` are its open messages.
    pub(crate) fn enter(
        &mut self,
        number: u32,
        token: i64,
        until: Instant,
        cursors: Vec<Cursor>,
        waiting: Vec<(At, String, Timestamp)>,
        again: Vec<Ready>,
    ) {
        for (scanned, cursor) in self.scanned.iter_mut().zip(&cursors) {
            *scanned = (*scanned).min(cursor.position);
        }
        let mut lane = Lane {
            token,
            until,
            cursors,
            leaving: false,
            waiting: Waiting::new(self.ordered),
            held: 0,
        };
        for (at, key, due) in waiting {
            lane.waiting.insert(at, &key, due);
        }
        let mut missing: Vec<BTreeSet<i64>> =
            lane.cursors.iter().map(|cursor| cursor.open.clone()).collect();
        for ready in again {
            if !lane.waiting.contains(ready.at) {
                missing[ready.at.topic].remove(&ready.at.seq);
                self.ready[ready.at.topic].insert(ready.at.seq, ready);
            }
        }
        // What is open but waits already, or is not in the log, needs no second memory.
        for (cursor, missing) in lane.cursors.iter_mut().zip(missing) {
            cursor.open.retain(|seq| !missing.contains(seq));
        }
        if let Some(slot) = self.lanes.get_mut(number as usize) {
            *slot = Some(lane);
        }
        self.generation += 1;
    }

    /// Gives a lane up; what is held of it becomes stale.
    pub(crate) fn leave(&mut self, number: u32) {
        if let Some(slot) = self.lanes.get_mut(number as usize) {
            *slot = None;
        }
        self.generation += 1;
        self.forget_ready(number);
        self.held.retain(|_, held| held.lane != number || held.claimed);
    }

    /// The messages of a lane that are in the consumer's hands stay there when the lane is given
    /// up; answers with them. Only without order, where another member may go on with the lane.
    pub(crate) fn claim(&mut self, number: u32) -> Vec<Ready> {
        let mut claimed = Vec::new();
        for held in self.held.values_mut().filter(|held| held.lane == number && !held.claimed) {
            held.claimed = true;
            claimed.push(held.clone());
        }
        for ready in &claimed {
            if let Some(lane) = self.lane_mut(number) {
                lane.held -= 1;
                lane.cursors[ready.at.topic].settle(ready.at.seq);
            }
        }
        claimed
    }

    pub(crate) fn ordered(&self) -> bool {
        self.ordered
    }

    /// Stops handing out messages of a lane, which is about to be given up.
    pub(crate) fn stop(&mut self, number: u32) {
        if let Some(lane) = self.lane_mut(number) {
            lane.leaving = true;
        }
        self.generation += 1;
        self.forget_ready(number);
    }

    fn forget_ready(&mut self, number: u32) {
        for ready in &mut self.ready {
            ready.retain(|_, ready| ready.lane != number);
        }
    }

    /// How many messages of a lane are in the consumer's hands.
    pub(crate) fn held_of(&self, number: u32) -> usize {
        self.lane(number).map_or(0, |lane| lane.held)
    }

    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    pub(crate) fn buffered(&self) -> usize {
        self.ready.iter().map(BTreeMap::len).sum()
    }

    /// What to read next from the logs.
    pub(crate) fn scan(&self) -> Scan {
        let mut wanted = vec![[i64::MAX; LANES as usize]; self.scanned.len()];
        for (number, lane) in self.lanes().filter(|(_, lane)| !lane.leaving) {
            for (wanted, cursor) in wanted.iter_mut().zip(&lane.cursors) {
                wanted[number as usize] = cursor.position;
            }
        }
        Scan { generation: self.generation, after: self.scanned.clone(), wanted }
    }

    /// Whether what was read by `scan` can still be used.
    pub(crate) fn fits(&self, scan: &Scan) -> bool {
        self.generation == scan.generation
    }

    /// A message was read from the log.
    pub(crate) fn read(&mut self, ready: Ready) {
        if self.open(ready.lane, ready.at).is_some() {
            self.ready[ready.at.topic].insert(ready.at.seq, ready);
        }
    }

    /// A row of the log was read that is no message: it stays open until it was buried. Answers
    /// with the token of its lane.
    pub(crate) fn read_broken(&mut self, number: u32, at: At) -> Option<i64> {
        self.open(number, at)
    }

    fn open(&mut self, number: u32, at: At) -> Option<i64> {
        let lane = self.lane_mut(number)?;
        let cursor = &mut lane.cursors[at.topic];
        cursor.position = at.seq;
        // One that waits already was in doubt when its lane was given up.
        (!lane.waiting.contains(at)).then(|| {
            cursor.open.insert(at.seq);
            lane.token
        })
    }

    /// Everything of a topic up to `end` was scanned.
    pub(crate) fn scanned(&mut self, topic: usize, end: i64) {
        self.scanned[topic] = end;
        for (_, lane) in self.lanes_mut().filter(|(_, lane)| !lane.leaving) {
            let position = &mut lane.cursors[topic].position;
            *position = end.max(*position);
        }
    }

    /// Messages that were waiting and are due were read.
    pub(crate) fn due(&mut self, ready: Ready) {
        match self.lane_mut(ready.lane) {
            Some(lane) if !lane.leaving && lane.waiting.begin(ready.at) => {
                self.ready[ready.at.topic].insert(ready.at.seq, ready);
            }
            _ => {}
        }
    }

    /// Takes up to `count` messages for the consumer. Those whose key is held by an earlier message
    /// that waits are to be parked behind it.
    pub(crate) fn take(&mut self, count: usize, now: Instant) -> (Vec<(u64, Ready)>, Vec<Park>) {
        if self.lanes().any(|(_, lane)| lane.until <= now) {
            // A lease may be over; the keeper finds out before anything more is handed out.
            return (Vec::new(), Vec::new());
        }
        let mut taken = Vec::with_capacity(count.min(self.buffered()));
        let mut parked = Vec::new();
        while taken.len() < count {
            let Some(ready) = self.pop() else { break };
            let Some(lane) = self.lanes.get_mut(ready.lane as usize).and_then(Option::as_mut)
            else {
                continue;
            };
            if !ready.waited && lane.waiting.holds(&ready.message.key, ready.at) {
                lane.waiting.write(ready.at, &ready.message.key);
                parked.push(Park {
                    lane: ready.lane,
                    token: lane.token,
                    at: ready.at,
                    key: ready.message.key.clone(),
                    due: Timestamp::EPOCH,
                    attempts: ready.attempts,
                    waited: false,
                });
                continue;
            }
            lane.held += 1;
            let token = self.next_token;
            self.next_token += 1;
            self.held.insert(token, ready.clone());
            taken.push((token, ready));
        }
        (taken, parked)
    }

    /// The next message, from each topic in turn.
    fn pop(&mut self) -> Option<Ready> {
        let topics = self.ready.len();
        for step in 0..topics {
            let topic = (self.next_topic + step) % topics;
            if let Some((_, ready)) = self.ready[topic].pop_first() {
                self.next_topic = (topic + 1) % topics;
                return Some(ready);
            }
        }
        None
    }

    /// Settles what was handed out under `token`.
    pub(crate) fn settle(
        &mut self,
        token: u64,
        settlement: Settlement,
        wall: Timestamp,
        now: Instant,
    ) -> Effect {
        let Some(held) = self.held.remove(&token) else { return Effect::Stale };
        if held.claimed {
            return Effect::Claimed {
                lane: held.lane,
                at: held.at,
                attempts: held.attempts,
                id: held.message.id,
                settlement,
            };
        }
        let Some(lane) = self.lanes.get_mut(held.lane as usize).and_then(Option::as_mut) else {
            return Effect::Stale;
        };
        lane.held -= 1;
        if lane.until <= now {
            return Effect::Stale;
        }
        let at = held.at;
        match settlement {
            Settlement::Ack if held.waited => lane.waiting.done(at),
            Settlement::Ack => lane.cursors[at.topic].settle(at.seq),
            // What is left open comes again: to the next holder when the lane is being given up.
            Settlement::Release if held.waited => lane.waiting.again(at, Timestamp::EPOCH),
            Settlement::Release if lane.leaving => {}
            Settlement::Release => {
                self.ready[at.topic].insert(at.seq, held);
            }
            Settlement::Retry { after, attempts } => {
                let key = held.message.key.clone();
                let due = wall + after;
                lane.waiting.write(at, &key);
                return Effect::Park(Park {
                    lane: held.lane,
                    token: lane.token,
                    at,
                    key,
                    due,
                    attempts: held.attempts.saturating_add(attempts),
                    waited: held.waited,
                });
            }
            Settlement::Dead(reason) => {
                return Effect::Bury(Bury {
                    lane: held.lane,
                    token: lane.token,
                    at,
                    waited: held.waited,
                    key: held.message.key.clone(),
                    id: held.message.id,
                    reason,
                });
            }
        }
        Effect::Noted
    }

    /// What was to be parked is in the table.
    pub(crate) fn parked(&mut self, park: &Park) {
        if let Some(lane) = self.lane_of(park.lane, park.token) {
            lane.cursors[park.at.topic].settle(park.at.seq);
            lane.waiting.again(park.at, park.due);
        }
    }

    /// What was to be buried is among the dead letters.
    pub(crate) fn buried(&mut self, bury: &Bury) {
        if let Some(lane) = self.lane_of(bury.lane, bury.token) {
            lane.cursors[bury.at.topic].settle(bury.at.seq);
            lane.waiting.forget(bury.at);
        }
    }

    fn lane_of(&mut self, number: u32, token: i64) -> Option<&mut Lane> {
        self.lane_mut(number).filter(|lane| lane.token == token)
    }

    /// The positions of waiting messages that are due, at most `count`; each is given out once.
    pub(crate) fn take_due(&mut self, now: Timestamp, count: usize) -> Vec<At> {
        let mut due = Vec::new();
        for (_, lane) in self.lanes_mut().filter(|(_, lane)| !lane.leaving) {
            lane.waiting.take_due(now, count - due.len(), &mut due);
        }
        due
    }

    /// When the next waiting message is due.
    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        let lanes = self.lanes().filter(|(_, lane)| !lane.leaving);
        lanes.filter_map(|(_, lane)| lane.waiting.next_due()).min()
    }

    /// Waiting messages that were asked for are not in the table any more.
    pub(crate) fn gone(&mut self, at: At) {
        for (_, lane) in self.lanes_mut() {
            lane.waiting.gone(at);
        }
    }
}

#[cfg(test)]
mod tests;
