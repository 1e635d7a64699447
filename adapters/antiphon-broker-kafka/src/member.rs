//! What a member of a group holds: its lanes, what is out, and what it has to be told.
//!
//! All of it changes by short synchronous steps under one lock; nothing here talks to Kafka. The
//! poller brings records and carries reports away, the source hands out, settlements come from
//! wherever handlers run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use antiphon_messaging::{Message, Settled, Settlement, Settling};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::flights::Flights;
use crate::lane::{Lane, Report};
use crate::progress::Progress;

/// How many deliveries of one lane are handed out before the next lane has its turn.
const TURN: usize = 64;
/// After how many settlements progress is written down before its time.
pub(crate) const COMMIT_EVERY: usize = 1_000;

/// The bounds of a member.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) ordered: bool,
    pub(crate) read_ahead_max: usize,
    pub(crate) kept_messages_max: usize,
    pub(crate) kept_bytes_max: usize,
    pub(crate) span_max: u64,
    /// The longest wait that is kept here.
    pub(crate) retry_delay_max: Duration,
}

/// What a member gets.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) token: u64,
    pub(crate) attempt: u32,
    pub(crate) lane: u32,
    pub(crate) message: Arc<Message>,
}

/// What looking for deliveries found.
#[derive(Debug)]
pub(crate) enum Look {
    Found(Vec<Taken>),
    /// Others take over these lanes.
    Revoked(Vec<u32>),
    Lost(String),
    /// Nothing; look again at this moment at the latest.
    Nothing(Option<Instant>),
}

/// A lane that is to be paused or resumed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Switch {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) pause: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Member {
    limits: Limits,
    lanes: BTreeMap<u32, Lane>,
    flights: Flights,
    cursor: u32,
    /// Lanes that the engine has to be told to give up.
    revoked: Vec<u32>,
    closing: bool,
    lost: Option<String>,
    /// How many deliveries were settled since the last report.
    settled: usize,
    /// How many partitions were assigned.
    epochs: u32,
    /// Whether the poller waits until there is room to read on.
    pub(crate) crowded: bool,
}

impl Member {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            lanes: BTreeMap::new(),
            flights: Flights::default(),
            cursor: 0,
            revoked: Vec::new(),
            closing: false,
            lost: None,
            settled: 0,
            epochs: 0,
            crowded: false,
        }
    }

    // What the poller does.

    /// A partition is ours from now on.
    pub(crate) fn assign(&mut self, id: u32, topic: &Arc<str>, partition: i32, progress: Progress) {
        self.epochs += 1;
        let (topic, ordered) = (Arc::clone(topic), self.limits.ordered);
        self.lanes.insert(id, Lane::new(topic, partition, ordered, self.epochs, progress));
    }

    /// Others take over these lanes: nothing more of them is handed out, and the engine is told.
    pub(crate) fn revoke(&mut self, lanes: &[u32]) {
        for id in lanes {
            let Some(lane) = self.lanes.get_mut(id) else { continue };
            lane.leaving = true;
            if lane.out > 0 && !self.closing {
                self.revoked.push(*id);
            }
        }
    }

    /// Whether nothing of these lanes is out.
    pub(crate) fn is_settled(&self, lanes: &[u32]) -> bool {
        lanes.iter().all(|id| self.lanes.get(id).is_none_or(|lane| lane.out == 0))
    }

    /// These lanes are not ours any more. What is out of them can no longer be settled.
    pub(crate) fn remove(&mut self, lanes: &[u32]) {
        self.flights.forget(|lane| lanes.contains(&lane));
        self.lanes.retain(|id, _| !lanes.contains(id));
        self.revoked.retain(|id| !lanes.contains(id));
    }

    /// The end: nothing can be settled any more.
    pub(crate) fn lose(&mut self, why: impl Into<String>) {
        self.lost.get_or_insert_with(|| why.into());
        self.flights.forget(|_| true);
        self.lanes.clear();
    }

    /// What is out of these lanes can no longer be settled; what was settled is still to be written
    /// down.
    pub(crate) fn give_up(&mut self, lanes: &[u32]) {
        self.flights.forget(|lane| lanes.contains(&lane));
        self.revoked.retain(|id| !lanes.contains(id));
    }

    /// All lanes.
    pub(crate) fn lanes(&self) -> Vec<u32> {
        self.lanes.keys().copied().collect()
    }

    /// A record was read.
    pub(crate) fn receive(
        &mut self,
        lane: u32,
        offset: i64,
        message: Message,
        now: Instant,
        wall_ms: i64,
    ) {
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.receive(offset, Arc::new(message), now, wall_ms);
        }
    }

    /// Whether so much was read ahead that reading has to wait.
    pub(crate) fn has_enough(&self) -> bool {
        self.ready() >= self.limits.read_ahead_max
    }

    fn ready(&self) -> usize {
        self.lanes.values().map(Lane::ready).sum()
    }

    /// Which lanes are to be paused or resumed. With `all` every one is paused: nothing is read
    /// while nobody takes what was read.
    pub(crate) fn switches(&mut self, all: bool) -> Vec<Switch> {
        let mut switches = Vec::new();
        for lane in self.lanes.values_mut() {
            let (messages, bytes, span) = lane.burden();
            // A lane that is paused is resumed when half of what paused it is gone.
            let part = if lane.paused { 2 } else { 1 };
            let full = messages * part >= self.limits.kept_messages_max
                || bytes * part >= self.limits.kept_bytes_max
                || span * (part as u64) >= self.limits.span_max;
            let pause = all || full;
            if pause != lane.paused {
                lane.paused = pause;
                let topic = Arc::clone(&lane.topic);
                switches.push(Switch { topic, partition: lane.partition, pause });
            }
        }
        switches
    }

    /// How many deliveries were settled since this was asked last, and whether somebody waits to
    /// hear that a settlement is written down.
    pub(crate) fn unwritten(&self) -> (usize, bool) {
        (self.settled, self.lanes.values().any(Lane::is_awaited))
    }

    /// What is to be written down.
    pub(crate) fn reports(&mut self) -> Vec<(u32, Arc<str>, i32, Report)> {
        self.settled = 0;
        let changed = |(id, lane): (&u32, &Lane)| {
            Some((*id, Arc::clone(&lane.topic), lane.partition, lane.report()?))
        };
        self.lanes.iter().filter_map(changed).collect()
    }

    /// Whether all that has changed in these lanes is written down.
    pub(crate) fn is_written(&self, lanes: &[u32]) -> bool {
        lanes.iter().all(|id| self.lanes.get(id).is_none_or(Lane::is_written))
    }

    /// A report is written down.
    pub(crate) fn written(&mut self, lane: u32, report: &Report, with_text: bool) {
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.written(report, with_text);
        }
    }

    // What the source does.

    /// Why nothing can be settled any more.
    pub(crate) fn lost(&self) -> Option<String> {
        self.lost.clone()
    }

    pub(crate) fn close(&mut self) {
        self.closing = true;
        self.revoked.clear();
    }

    /// Whether it is closed and nothing is out any more.
    pub(crate) fn is_done(&self) -> bool {
        self.closing && self.flights.len() == 0
    }

    /// Whether the poller has something to do that cannot wait for its next turn.
    pub(crate) fn needs_poller(&self) -> bool {
        let (settled, awaited) = self.unwritten();
        self.is_done()
            || awaited
            || settled >= COMMIT_EVERY
            || self.lanes.values().any(|lane| lane.leaving && lane.out == 0)
    }

    pub(crate) fn look(&mut self, credits: usize, now: Instant) -> Look {
        if let Some(why) = &self.lost {
            return Look::Lost(why.clone());
        }
        if !self.revoked.is_empty() {
            return Look::Revoked(std::mem::take(&mut self.revoked));
        }
        if credits == 0 || self.closing {
            return Look::Nothing(None);
        }
        for lane in self.lanes.values_mut().filter(|lane| !lane.leaving) {
            lane.advance(now);
        }
        let taken = self.hand_out(credits);
        if taken.is_empty() {
            let due = self.lanes.values().filter(|lane| !lane.leaving).filter_map(Lane::next_due);
            return Look::Nothing(due.min());
        }
        Look::Found(taken)
    }

    /// Goes through the lanes in turn, so that none waits for another to be empty.
    fn hand_out(&mut self, credits: usize) -> Vec<Taken> {
        let mut taken = Vec::new();
        let first = self.cursor;
        let turns: Vec<u32> =
            self.lanes.range(first..).chain(self.lanes.range(..first)).map(|(id, _)| *id).collect();
        let mut found = true;
        while found && taken.len() < credits {
            found = false;
            for id in &turns {
                let Some(lane) = self.lanes.get_mut(id).filter(|lane| !lane.leaving) else {
                    continue;
                };
                for _ in 0..TURN.min(credits - taken.len()) {
                    let Some(entry) = lane.hand_out() else { break };
                    found = true;
                    let attempt = entry.attempts.saturating_add(1);
                    let message = Arc::clone(&entry.message);
                    let token = self.flights.depart(*id, entry);
                    taken.push(Taken { token, attempt, lane: *id, message });
                }
                self.cursor = id + 1;
                if taken.len() == credits {
                    break;
                }
            }
        }
        taken
    }

    /// Whether the poller waits for room, and there is room now.
    pub(crate) fn has_room(&mut self) -> bool {
        let room = self.crowded && self.ready() * 2 <= self.limits.read_ahead_max;
        if room {
            self.crowded = false;
        }
        room
    }

    // Settling.

    /// Settles one delivery.
    pub(crate) fn settle(
        &mut self,
        token: u64,
        settlement: Settlement,
        now: Instant,
        wall_ms: i64,
    ) -> Settling {
        let Some((lane, entry)) = self.flights.land(token) else {
            return Settling::Done(Settled::Stale);
        };
        let Some(lane) = self.lanes.get_mut(&lane) else {
            return Settling::Done(Settled::Stale);
        };
        let settled = match settlement {
            Settlement::Ack => {
                self.settled += 1;
                lane.finish(&entry);
                Settled::Sent
            }
            Settlement::Release => {
                lane.put_back(entry);
                Settled::Confirmed
            }
            Settlement::Retry { after, attempts } if after <= self.limits.retry_delay_max => {
                match lane.retry(entry, attempts, after, now, wall_ms) {
                    Some(answer) => return Settling::Wait(Box::pin(heard(answer))),
                    None => Settled::Confirmed,
                }
            }
            // Kafka can neither wait for so long nor keep dead letters: the message comes again.
            Settlement::Retry { .. } | Settlement::Dead(_) => {
                lane.put_back(entry);
                Settled::Stale
            }
        };
        Settling::Done(settled)
    }
}

/// The answer of the poller; none comes when the lane was lost before.
async fn heard(answer: oneshot::Receiver<Settled>) -> Settled {
    answer.await.unwrap_or(Settled::Stale)
}
