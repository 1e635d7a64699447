//! What the relay does next, decided without doing it: lanes in, actions out.
//!
//! At any time at most one read, one removal and one change of leases are under way, and
//! `calls_max` broker calls, each with rows of lanes that no other call has.

mod leases;

use std::collections::BTreeMap;

use antiphon_messaging::{Message, PublishError, Receipt};
use tokio::time::Instant;

use super::lane::{Lane, Reading};
use super::settings::RelaySettings;
use crate::port::{Confirmation, Lease, OutboxRow, Seq, StoreError};

/// What the driver is to do.
#[derive(Debug)]
pub(super) enum Action {
    /// Renew these leases and count the instances.
    Tend(Vec<Lease>),
    /// Take up to this many more lanes.
    Acquire(u32),
    /// Give these leases back.
    Release(Vec<Lease>),
    /// Read rows.
    Read { readings: Vec<Reading>, count_max: u32 },
    /// Hand rows to the broker.
    Publish(Call),
    /// Remove what the broker has.
    Confirm(Vec<Confirmation>),
    /// Put a row aside.
    Bury(Box<Burial>),
}

/// A broker call: rows of several lanes, one lane after the other.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) parts: Vec<Part>,
    pub(super) messages: Vec<Message>,
}

/// The rows of one lane in a broker call.
#[derive(Debug)]
pub(super) struct Part {
    lane: u32,
    token: i64,
    seqs: Vec<Seq>,
}

/// A row that the broker refuses for good.
#[derive(Debug)]
pub(super) struct Burial {
    pub(super) lease: Lease,
    pub(super) seq: Seq,
    pub(super) message: Message,
    pub(super) reason: String,
}

/// What happened since the counts were last taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) published: u64,
    pub(super) resent: u64,
    pub(super) failed: u64,
    pub(super) buried: u64,
    pub(super) leases_lost: u64,
}

#[derive(Debug)]
pub(super) struct Engine {
    settings: RelaySettings,
    lanes: BTreeMap<u32, Lane>,
    /// Where the next broker call begins to collect, so that no lane is always last.
    next_lane: u32,
    is_reading: bool,
    calls: usize,
    is_confirming: bool,
    burials: Vec<Burial>,
    burying: usize,
    /// When all lanes are read although nobody reported a commit.
    poll_at: Instant,
    poll_delay: std::time::Duration,
    /// No read before this.
    read_at: Instant,
    read_failures: u32,
    confirm_at: Instant,
    is_changing_leases: bool,
    tend_at: Instant,
    acquire_at: Instant,
    /// How many lanes are this instance's fair share.
    share: usize,
    is_draining: bool,
    counts: Counts,
}

impl Engine {
    pub(super) fn new(settings: RelaySettings, now: Instant) -> Self {
        Self {
            poll_delay: settings.poll_min,
            settings,
            lanes: BTreeMap::new(),
            next_lane: 0,
            is_reading: false,
            calls: 0,
            is_confirming: false,
            burials: Vec::new(),
            burying: 0,
            poll_at: now,
            read_at: now,
            read_failures: 0,
            confirm_at: now,
            is_changing_leases: false,
            tend_at: now,
            acquire_at: now,
            share: 0,
            is_draining: false,
            counts: Counts::default(),
        }
    }

    /// Rows were committed in this process.
    pub(super) fn wake(&mut self) {
        self.poll_delay = self.settings.poll_min;
        self.lanes.values_mut().for_each(Lane::wake);
    }

    /// From now on: publish what is committed, and take on nothing more.
    pub(super) fn drain(&mut self, now: Instant) {
        self.is_draining = true;
        self.read_at = now;
        self.lanes.values_mut().for_each(Lane::rewind);
    }

    /// Whether nothing is left that can be done now. What waits for the broker stays in the store.
    pub(super) fn is_drained(&self, now: Instant) -> bool {
        self.is_draining
            && !self.is_reading
            && self.calls == 0
            && !self.is_confirming
            && self.burying == 0
            && self.burials.is_empty()
            && !self.lanes.values().any(|lane| lane.has_work(now))
    }

    pub(super) fn count_lanes(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// What to do now; `None` until something happens or [`wake_at`](Self::wake_at) comes.
    pub(super) fn next(&mut self, now: Instant) -> Option<Action> {
        if self.poll_at <= now {
            self.poll_at = now + self.poll_delay;
            self.poll_delay = (self.poll_delay * 2).min(self.settings.poll_max);
            self.lanes.values_mut().for_each(Lane::wake);
        }
        self.lease_action(now)
            .or_else(|| self.removal(now))
            .or_else(|| self.call(now))
            .or_else(|| self.read(now))
    }

    /// When [`next`](Self::next) may have something to do although nothing happened.
    pub(super) fn wake_at(&self, now: Instant) -> Instant {
        let lanes = self.lanes.values().filter_map(|lane| lane.next_wake(&self.settings));
        let leases = (!self.is_changing_leases).then_some(self.next_lease_change());
        let read = self.lanes.values().any(Lane::wants_read).then_some(self.read_at);
        lanes
            .map(|at| at.max(self.confirm_at))
            .chain(leases)
            .chain(read.filter(|_| !self.is_reading))
            .chain([self.poll_at])
            .filter(|at| *at > now)
            .min()
            .unwrap_or(now + self.settings.poll_max)
    }

    // Reading.

    fn read(&mut self, now: Instant) -> Option<Action> {
        if self.is_reading || self.read_at > now {
            return None;
        }
        let settings = &self.settings;
        let readings: Vec<_> =
            self.lanes.values_mut().filter_map(|lane| lane.reading(settings, now)).collect();
        let count_max = readings.iter().map(|reading| reading.count).max()?;
        self.is_reading = true;
        self.read_at = now + self.settings.read_gap;
        Some(Action::Read { readings, count_max: u32::try_from(count_max).unwrap_or(u32::MAX) })
    }

    /// Answers whether the read succeeded.
    pub(super) fn on_read(
        &mut self,
        readings: &[Reading],
        count_max: u32,
        answer: Result<Vec<OutboxRow>, StoreError>,
        now: Instant,
    ) -> Result<(), StoreError> {
        self.is_reading = false;
        let mut rows: BTreeMap<u32, Vec<OutboxRow>> = BTreeMap::new();
        match answer {
            Ok(found) => {
                found.into_iter().for_each(|row| rows.entry(row.lane).or_default().push(row))
            }
            Err(error) => {
                self.read_failures = self.read_failures.saturating_add(1);
                self.read_at = now + self.backoff(self.read_failures);
                self.lanes.values_mut().for_each(Lane::wake);
                return Err(error);
            }
        }
        self.read_failures = 0;
        let asked = usize::try_from(count_max).unwrap_or(usize::MAX);
        let mut count_new = 0;
        for reading in readings {
            let Some(lane) = self.lanes.get_mut(&reading.position.lane) else {
                continue;
            };
            let rows = rows.remove(&reading.position.lane).unwrap_or_default();
            if rows.len() >= asked {
                // There is more: no reason to wait for others to commit.
                self.read_at = now;
            }
            count_new += lane.found(rows, *reading, asked, &self.settings);
        }
        if count_new > 0 {
            self.poll_delay = self.settings.poll_min;
            self.poll_at = now + self.poll_delay;
        }
        Ok(())
    }

    fn backoff(&self, failures: u32) -> std::time::Duration {
        let factor = 2_u32.saturating_pow(failures.saturating_sub(1));
        self.settings.backoff_min.saturating_mul(factor).min(self.settings.backoff_max)
    }

    // Publishing.

    fn call(&mut self, now: Instant) -> Option<Action> {
        if self.calls >= self.settings.calls_max {
            return None;
        }
        let mut rows = Vec::new();
        let mut parts = Vec::new();
        let order: Vec<u32> = self
            .lanes
            .range(self.next_lane..)
            .chain(self.lanes.range(..self.next_lane))
            .map(|(lane, _)| *lane)
            .collect();
        for number in order {
            let begin = rows.len();
            let Some(lane) = self.lanes.get_mut(&number) else {
                continue;
            };
            let room = self.settings.batch_max.saturating_sub(begin);
            self.counts.resent += lane.take(room, now, &mut rows);
            if rows.len() > begin {
                let seqs = rows[begin..].iter().map(|(seq, _): &(Seq, Message)| *seq).collect();
                parts.push(Part { lane: number, token: lane.lease().token, seqs });
            }
            if rows.len() >= self.settings.batch_max {
                self.next_lane = number + 1;
                break;
            }
        }
        if rows.is_empty() {
            return None;
        }
        self.calls += 1;
        Some(Action::Publish(Call {
            parts,
            messages: rows.into_iter().map(|(_, message)| message).collect(),
        }))
    }

    /// Takes in the broker's answers, in the order of the call's messages.
    pub(super) fn on_published(
        &mut self,
        parts: Vec<Part>,
        answers: &[Result<Receipt, PublishError>],
        now: Instant,
    ) {
        self.calls -= 1;
        let mut answers = answers;
        for part in parts {
            let (own, rest) = answers.split_at(part.seqs.len().min(answers.len()));
            answers = rest;
            let lane = self.lanes.get_mut(&part.lane);
            let Some(lane) = lane.filter(|lane| lane.lease().token == part.token) else {
                continue;
            };
            let outcome = lane.published(&part.seqs, own, &self.settings, now);
            self.counts.published += outcome.confirmed;
            self.counts.failed += outcome.failed;
            let lease = lane.lease().clone();
            for (seq, message, reason) in outcome.bury {
                let lease = lease.clone();
                self.burials.push(Burial { lease, seq, message, reason });
            }
        }
    }

    // Removing.

    fn removal(&mut self, now: Instant) -> Option<Action> {
        if self.confirm_at > now {
            return None;
        }
        if let Some(burial) = self.burials.pop() {
            self.burying += 1;
            return Some(Action::Bury(Box::new(burial)));
        }
        let count: usize = self.lanes.values().map(Lane::count_confirmed).sum();
        let oldest = self.lanes.values().filter_map(Lane::confirmed_since).min()?;
        let is_due = count >= self.settings.confirm_max
            || oldest + self.settings.confirm_interval <= now
            || self.is_draining;
        if self.is_confirming || !is_due {
            return None;
        }
        self.is_confirming = true;
        Some(Action::Confirm(self.lanes.values_mut().filter_map(Lane::take_confirmed).collect()))
    }

    /// Answers whether the removal succeeded.
    pub(super) fn on_confirmed(
        &mut self,
        confirmations: &[Confirmation],
        answer: Result<Vec<u32>, StoreError>,
        now: Instant,
    ) -> Result<(), StoreError> {
        self.is_confirming = false;
        let lost = match answer {
            Ok(lost) => lost,
            Err(error) => {
                self.confirm_at = now + self.settings.backoff_min;
                for confirmation in confirmations {
                    if let Some(lane) = self.lane_of(&confirmation.lease) {
                        lane.not_removed(&confirmation.rows, now);
                    }
                }
                return Err(error);
            }
        };
        let is_reading = self.is_reading;
        for confirmation in confirmations {
            if lost.contains(&confirmation.lease.lane) {
                self.lose(&confirmation.lease);
            } else if let Some(lane) = self.lane_of(&confirmation.lease) {
                lane.removed(&confirmation.rows, is_reading);
            }
        }
        Ok(())
    }

    /// Answers whether the burial succeeded.
    pub(super) fn on_buried(
        &mut self,
        burial: Burial,
        answer: Result<(), StoreError>,
        now: Instant,
    ) -> Result<(), StoreError> {
        self.burying -= 1;
        let is_reading = self.is_reading;
        match answer {
            Ok(()) => {
                self.counts.buried += 1;
                if let Some(lane) = self.lane_of(&burial.lease) {
                    lane.removed(&[burial.seq], is_reading);
                }
                Ok(())
            }
            Err(error @ StoreError::Fenced { .. }) => {
                self.lose(&burial.lease);
                Err(error)
            }
            Err(error) => {
                self.confirm_at = now + self.settings.backoff_min;
                if self.lane_of(&burial.lease).is_some() {
                    self.burials.push(burial);
                }
                Err(error)
            }
        }
    }

    /// The lane, if it is still held under the same lease.
    fn lane_of(&mut self, lease: &Lease) -> Option<&mut Lane> {
        self.lanes.get_mut(&lease.lane).filter(|lane| lane.lease().token == lease.token)
    }

    fn lose(&mut self, lease: &Lease) {
        if self.lane_of(lease).is_some() {
            self.lanes.remove(&lease.lane);
            self.counts.leases_lost += 1;
        }
    }
}
