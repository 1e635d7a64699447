//! One group: what waits for it, who is in it, and what they hold.
//!
//! Messages wait in lanes, each sorted by the order in which the messages became available. In an
//! ordered group each lane belongs to one member; a lane changes hands only when nothing of it is in
//! flight. A message that waits for its retry takes the later ones of its key out of the lane.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::{GroupState, LANES, Message, Settled, Settlement, lane_of};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::broker::Settings;
use crate::dead::Letter;
use crate::flights::{Flight, Flights};

/// Who is in the group. Grows, so that the order of joining is known.
pub(crate) type MemberId = u64;

/// A message that a group has not handled.
pub(crate) struct Entry {
    pub(crate) sequence: u64,
    pub(crate) message: Arc<Message>,
    /// How many attempts were made.
    pub(crate) attempts: u32,
    pub(crate) lane: u32,
}

#[derive(Default)]
struct Lane {
    queue: VecDeque<Entry>,
    owner: Option<MemberId>,
    in_flight: usize,
    /// Until when the owner may hold it although it is another's.
    leaving: Option<Instant>,
}

struct Member {
    notify: Arc<Notify>,
    closing: bool,
    in_flight: usize,
    /// Lanes that it has to be told to give up.
    revoked: Vec<u32>,
}

/// A key with a message that waits for its retry.
#[derive(Default)]
struct HeldKey {
    waiting: usize,
    followers: VecDeque<Entry>,
}

/// What a member gets.
pub(crate) struct Taken {
    pub(crate) token: u64,
    pub(crate) attempt: u32,
    pub(crate) lane: u32,
    pub(crate) message: Arc<Message>,
}

/// See the module.
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) topics: BTreeSet<String>,
    pub(crate) letters: BTreeMap<MessageId, Letter>,
    settings: Settings,
    ordered: bool,
    lanes: Vec<Lane>,
    members: BTreeMap<MemberId, Member>,
    in_flight: Flights,
    waiting: BTreeMap<(Instant, u64), Entry>,
    held: BTreeMap<String, HeldKey>,
    /// How many messages are neither settled nor in flight.
    backlog: usize,
    /// The lane that is looked at next.
    cursor: usize,
}

impl Group {
    pub(crate) fn new(name: &str, settings: &Settings) -> Self {
        Self {
            name: name.to_owned(),
            topics: BTreeSet::new(),
            letters: BTreeMap::new(),
            settings: settings.clone(),
            ordered: false,
            lanes: (0..LANES).map(|_| Lane::default()).collect(),
            members: BTreeMap::new(),
            in_flight: Flights::default(),
            waiting: BTreeMap::new(),
            held: BTreeMap::new(),
            backlog: 0,
            cursor: 0,
        }
    }

    pub(crate) fn backlog(&self) -> usize {
        self.backlog
    }

    /// Adds a new message, later than all others.
    pub(crate) fn add(&mut self, sequence: u64, message: Arc<Message>) {
        let lane = if message.key.is_empty() {
            // Nothing orders it, so it goes where there is the least to do for the lanes' owners.
            u32::try_from(sequence % u64::from(LANES)).unwrap_or(0)
        } else {
            lane_of(&message.key)
        };
        self.backlog += 1;
        self.lane(lane).queue.push_back(Entry { sequence, message, attempts: 0, lane });
    }

    /// The group as it is now.
    pub(crate) fn state(&self) -> GroupState {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        GroupState {
            name: self.name.clone(),
            topics: self.topics.iter().cloned().collect(),
            members: Some(u32::try_from(self.members.len()).unwrap_or(u32::MAX)),
            lag: Some(count(self.backlog + self.in_flight.tokens(|_| true).len())),
            waiting: Some(count(self.waiting.len())),
        }
    }

    fn lane(&mut self, lane: u32) -> &mut Lane {
        &mut self.lanes[lane as usize]
    }

    /// Puts a message back where it was.
    fn put_back(&mut self, entry: Entry) {
        self.backlog += 1;
        self.insert(entry);
    }

    fn insert(&mut self, entry: Entry) {
        let queue = &mut self.lane(entry.lane).queue;
        let at = queue.partition_point(|other| other.sequence < entry.sequence);
        queue.insert(at, entry);
    }

    pub(crate) fn wake(&self) {
        for member in self.members.values() {
            member.notify.notify_one();
        }
    }

    // Members and lanes.

    pub(crate) fn join(
        &mut self,
        id: MemberId,
        ordered: bool,
        notify: Arc<Notify>,
        now: Instant,
    ) -> Result<(), String> {
        if self.members.is_empty() {
            self.ordered = ordered;
        } else if self.ordered != ordered {
            let how = |ordered| if ordered { "in order" } else { "in any order" };
            return Err(format!(
                "group {} is read {} by others; it cannot be read {}",
                self.name,
                how(self.ordered),
                how(ordered)
            ));
        }
        let member = Member { notify, closing: false, in_flight: 0, revoked: Vec::new() };
        self.members.insert(id, member);
        self.rebalance(now);
        Ok(())
    }

    /// The member gets nothing more; what it holds it may still settle.
    pub(crate) fn close(&mut self, id: MemberId, now: Instant) {
        if let Some(member) = self.members.get_mut(&id) {
            member.closing = true;
        }
        self.rebalance(now);
    }

    /// Whether everything that the member got is settled.
    pub(crate) fn is_done(&self, id: MemberId) -> bool {
        self.members.get(&id).is_none_or(|member| member.in_flight == 0)
    }

    /// The member is gone; what it held comes again.
    pub(crate) fn leave(&mut self, id: MemberId, now: Instant) {
        if self.members.remove(&id).is_none() {
            return;
        }
        self.take_back(|flight| flight.member == id);
        for lane in &mut self.lanes {
            if lane.owner == Some(id) {
                lane.owner = None;
            }
        }
        self.rebalance(now);
        self.wake();
    }

    fn take_back(&mut self, which: impl Fn(&Flight) -> bool) {
        for token in self.in_flight.tokens(which) {
            if let Some(entry) = self.land(token) {
                self.put_back(entry);
            }
        }
    }

    /// Deals the lanes out to the members in turn. A lane that is in use goes over when its owner
    /// has settled what it holds of it, or has taken too long.
    fn rebalance(&mut self, now: Instant) {
        let open: Vec<MemberId> =
            self.members.iter().filter(|(_, member)| !member.closing).map(|(id, _)| *id).collect();
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let target = (!open.is_empty()).then(|| open[index % open.len()]);
            if lane.owner == target {
                lane.leaving = None;
                continue;
            }
            let owner = lane.owner.and_then(|owner| self.members.get_mut(&owner));
            match owner {
                Some(owner) if lane.in_flight > 0 && self.ordered => {
                    if lane.leaving.is_none() {
                        lane.leaving = Some(now + self.settings.revoke_wait);
                        if !owner.closing {
                            owner.revoked.push(u32::try_from(index).unwrap_or(0));
                            owner.notify.notify_one();
                        }
                    }
                }
                _ => {
                    lane.owner = target;
                    lane.leaving = None;
                    if let Some(target) = target.and_then(|id| self.members.get(&id)) {
                        target.notify.notify_one();
                    }
                }
            }
        }
    }

    // Delivering.

    /// Does what is due.
    pub(crate) fn advance(&mut self, now: Instant) {
        while let Some(entry) = self.waiting.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let entry = entry.remove();
            self.back_in_line(entry);
        }
        let late = |lane: &Lane| lane.leaving.is_some_and(|until| until <= now);
        if self.lanes.iter().any(late) {
            let lanes: Vec<u32> =
                (0..LANES).filter(|lane| late(&self.lanes[*lane as usize])).collect();
            self.take_back(|flight| lanes.contains(&flight.entry.lane));
            self.rebalance(now);
        }
    }

    /// A retry is due: its key goes on, unless another message of the key waits as well.
    fn back_in_line(&mut self, entry: Entry) {
        let Some(held) = self.held.get_mut(&entry.message.key) else {
            self.insert(entry);
            return;
        };
        held.waiting -= 1;
        let at = held.followers.partition_point(|other| other.sequence < entry.sequence);
        held.followers.insert(at, entry);
        if held.waiting == 0 {
            let key = held.followers[at].message.key.clone();
            let followers = self.held.remove(&key).map(|held| held.followers).unwrap_or_default();
            for entry in followers {
                self.insert(entry);
            }
        }
    }

    /// When something becomes due next.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let retry = self.waiting.first_key_value().map(|((due, _), _)| *due);
        let lane = self.lanes.iter().filter_map(|lane| lane.leaving).min();
        retry.into_iter().chain(lane).min()
    }

    /// Lanes that the member has to give up and still holds something of.
    pub(crate) fn revoked(&mut self, id: MemberId) -> Vec<u32> {
        let Some(member) = self.members.get_mut(&id) else {
            return Vec::new();
        };
        let mut lanes = std::mem::take(&mut member.revoked);
        lanes.retain(|lane| self.lanes[*lane as usize].leaving.is_some());
        lanes
    }

    /// At most `count_max` messages for the member.
    pub(crate) fn take(&mut self, id: MemberId, count_max: usize) -> Vec<Taken> {
        let open = self.members.get(&id).is_some_and(|member| !member.closing);
        let mut taken = Vec::new();
        let mut idle = 0;
        while open && taken.len() < count_max && idle < self.lanes.len() {
            let lane = self.cursor;
            self.cursor = (lane + 1) % self.lanes.len();
            let Some(entry) = self.pop(lane, id) else {
                idle += 1;
                continue;
            };
            idle = 0;
            let (attempt, lane) = (entry.attempts + 1, entry.lane);
            let message = Arc::clone(&entry.message);
            let token = self.in_flight.insert(Flight { member: id, entry });
            taken.push(Taken { token, attempt, lane, message });
        }
        self.backlog -= taken.len();
        if let Some(member) = self.members.get_mut(&id) {
            member.in_flight += taken.len();
        }
        taken
    }

    /// The next message of a lane whose key nothing holds back.
    fn pop(&mut self, lane: usize, member: MemberId) -> Option<Entry> {
        let lane = &mut self.lanes[lane];
        if self.ordered && (lane.owner != Some(member) || lane.leaving.is_some()) {
            return None;
        }
        loop {
            let entry = lane.queue.pop_front()?;
            let holds = self.ordered && !self.held.is_empty();
            match holds.then(|| self.held.get_mut(&entry.message.key)).flatten() {
                Some(held) => {
                    let after = |other: &Entry| other.sequence < entry.sequence;
                    let at = held.followers.partition_point(after);
                    held.followers.insert(at, entry);
                }
                None => {
                    lane.in_flight += 1;
                    return Some(entry);
                }
            }
        }
    }

    // Settling.

    /// Takes a message out of flight; `None` if it is not this token's any more.
    fn land(&mut self, token: u64) -> Option<Entry> {
        let Flight { member, entry } = self.in_flight.remove(token)?;
        self.lane(entry.lane).in_flight -= 1;
        if let Some(member) = self.members.get_mut(&member) {
            member.in_flight -= 1;
            if member.closing && member.in_flight == 0 {
                member.notify.notify_one();
            }
        }
        Some(entry)
    }

    /// Settles one delivery. Whoever may now get something is woken.
    pub(crate) fn settle(
        &mut self,
        token: u64,
        settlement: Settlement,
        now: Instant,
        wall: Timestamp,
    ) -> Settled {
        let Some(mut entry) = self.land(token) else {
            return Settled::Stale;
        };
        let lane = entry.lane;
        let capabilities = &self.settings.capabilities;
        let settled = match settlement {
            Settlement::Ack => {
                self.forget_redriven(entry.message.id);
                Settled::Confirmed
            }
            Settlement::Release => {
                self.put_back(entry);
                Settled::Confirmed
            }
            Settlement::Retry { after, .. } if after > capabilities.retry_delay_max => {
                self.put_back(entry);
                Settled::Stale
            }
            Settlement::Retry { after, attempts } => {
                entry.attempts = entry.attempts.saturating_add(attempts);
                self.retry(entry, now, after);
                Settled::Confirmed
            }
            Settlement::Dead(_) if !capabilities.dead_letters => {
                self.put_back(entry);
                Settled::Stale
            }
            Settlement::Dead(reason) => {
                self.bury(&entry.message, reason, wall);
                Settled::Confirmed
            }
        };
        let leaving = self.lane(lane);
        if leaving.leaving.is_some() && leaving.in_flight == 0 {
            self.rebalance(now);
        }
        settled
    }

    fn retry(&mut self, entry: Entry, now: Instant, after: Duration) {
        if after.is_zero() {
            self.put_back(entry);
            return;
        }
        self.backlog += 1;
        if self.ordered && self.settings.capabilities.holds_keys && !entry.message.key.is_empty() {
            self.held.entry(entry.message.key.clone()).or_default().waiting += 1;
        }
        self.waiting.insert((now + after, entry.sequence), entry);
    }
}
