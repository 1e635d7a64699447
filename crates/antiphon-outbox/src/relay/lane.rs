//! One leased lane: which of its rows are in memory, and how far each has come.
//!
//! Invariants:
//! 1. A row is in memory at most once; one that is, is ignored when it is read again.
//! 2. At most one batch of a lane is under way, and its rows are in order: that, with the broker's
//!    rule for batches, keeps the first deliveries of a key in order.
//! 3. A row leaves the memory of the lane only when it is removed from the store, buried, or left
//!    to the store behind a block that remembers it; of each blocked scope a row stays in memory.

use std::collections::{BTreeMap, HashSet};

use antiphon_messaging::{Message, PublishError, Receipt};
use tokio::time::Instant;

use super::block::{Blocks, Passage, Scope};
use super::settings::RelaySettings;
use super::verdict::{Verdict, judge};
use crate::port::{Confirmation, Lease, OutboxRow, Position, Seq};

/// How far a row has come.
#[derive(Debug)]
enum Row {
    /// Read. `tried` when it was handed to the broker before.
    Waiting { message: Message, tried: bool },
    /// Handed to the broker.
    Underway(Message),
    /// The broker has it.
    Confirmed,
    /// The store was asked to remove or bury it.
    Leaving,
}

/// What a broker call did.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) confirmed: u64,
    pub(super) failed: u64,
    /// Rows that the broker refused for good.
    pub(super) bury: Vec<(Seq, Message, String)>,
}

#[derive(Debug)]
pub(super) struct Lane {
    lease: Lease,
    /// By the local clock: nothing is published from here on.
    until: Instant,
    rows: BTreeMap<Seq, Row>,
    waiting: usize,
    waiting_bytes: usize,
    underway: usize,
    confirmed: usize,
    /// Since when the oldest confirmed row waits to be removed.
    confirmed_since: Option<Instant>,
    /// Gone from the store while a read was under way that may still see them.
    gone: HashSet<Seq>,
    /// The last row that was read.
    after: Option<Seq>,
    /// Grows when reading starts over; the answer to an earlier read is void.
    pass: u64,
    /// There may be more to read.
    wants_read: bool,
    next_sweep: Instant,
    blocks: Blocks,
    /// To be given to another instance: nothing new is begun.
    retiring: bool,
}

/// One lane's part of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) position: Position,
    pub(super) pass: u64,
    /// How many rows make sense.
    pub(super) count: usize,
}

impl Lane {
    pub(super) fn new(lease: Lease, until: Instant, now: Instant) -> Self {
        Self {
            lease,
            until,
            rows: BTreeMap::new(),
            waiting: 0,
            waiting_bytes: 0,
            underway: 0,
            confirmed: 0,
            confirmed_since: None,
            gone: HashSet::new(),
            after: None,
            pass: 0,
            wants_read: true,
            next_sweep: now,
            blocks: Blocks::default(),
            retiring: false,
        }
    }

    pub(super) fn lease(&self) -> &Lease {
        &self.lease
    }

    pub(super) fn renew(&mut self, lease: Lease, until: Instant) {
        self.lease = lease;
        self.until = until;
    }

    /// Whether the broker and the store owe this lane nothing.
    pub(super) fn is_idle(&self) -> bool {
        self.rows.values().all(|row| matches!(row, Row::Waiting { .. }))
    }

    pub(super) fn retire(&mut self) {
        self.retiring = true;
    }

    pub(super) fn is_retiring(&self) -> bool {
        self.retiring
    }

    /// Whether something is left to do now that can be done.
    pub(super) fn has_work(&self, now: Instant) -> bool {
        let may_work = now < self.until && !self.retiring;
        (may_work && self.wants_read)
            || self.rows.values().any(|row| match row {
                Row::Waiting { message, .. } => {
                    may_work && self.blocks.passage(message, now).0 != Passage::Closed
                }
                Row::Underway(_) | Row::Confirmed | Row::Leaving => true,
            })
    }

    /// When this lane has something to do that nobody tells it of.
    pub(super) fn next_wake(&self, settings: &RelaySettings) -> Option<Instant> {
        let removal = self.confirmed_since.map(|since| since + settings.confirm_interval);
        [removal, self.blocks.next_probe()].into_iter().flatten().min()
    }

    // Reading.

    /// Rows may have been committed.
    pub(super) fn wake(&mut self) {
        self.wants_read = true;
    }

    pub(super) fn wants_read(&self) -> bool {
        self.wants_read
    }

    /// Reads again from the beginning.
    pub(super) fn rewind(&mut self) {
        self.after = None;
        self.pass += 1;
        self.wants_read = true;
    }

    /// Where to read on, or `None` when there is no reason to or no room.
    pub(super) fn reading(&mut self, settings: &RelaySettings, now: Instant) -> Option<Reading> {
        if self.retiring || now >= self.until {
            return None;
        }
        if self.next_sweep <= now {
            self.next_sweep = now + self.sweep_interval(settings);
            self.rewind();
        }
        let room = self.room(settings);
        if !self.wants_read || room == 0 {
            return None;
        }
        self.wants_read = false;
        let held = match self.after {
            None => self.rows.len(),
            Some(after) => self.rows.range(after..).count(),
        };
        let position = Position { lane: self.lease.lane, after: self.after };
        Some(Reading { position, pass: self.pass, count: room + held })
    }

    fn room(&self, settings: &RelaySettings) -> usize {
        let by_count = settings.window.saturating_sub(self.waiting).min(settings.batch_max);
        if self.waiting == 0 {
            return by_count;
        }
        let average = (self.waiting_bytes / self.waiting).max(1);
        by_count.min(settings.window_bytes.saturating_sub(self.waiting_bytes) / average)
    }

    /// A lane that left rows to the store is swept rarely: each sweep reads all of them again.
    fn sweep_interval(&self, settings: &RelaySettings) -> std::time::Duration {
        if self.blocks.any_passed_over() {
            settings.sweep_interval.max(settings.backoff_max) * 6
        } else {
            settings.sweep_interval
        }
    }

    /// Takes in the answer to a read; `asked` is how many rows it could have had. Answers how many
    /// rows were new.
    pub(super) fn found(
        &mut self,
        rows: Vec<OutboxRow>,
        reading: Reading,
        asked: usize,
        settings: &RelaySettings,
    ) -> usize {
        let gone = std::mem::take(&mut self.gone);
        if reading.pass != self.pass {
            return 0;
        }
        self.wants_read |= rows.len() >= asked;
        let mut count_new = 0;
        for row in rows {
            self.after = self.after.max(Some(row.seq));
            if !self.rows.contains_key(&row.seq) && !gone.contains(&row.seq) {
                count_new += usize::from(self.admit(row.seq, row.message, settings));
            }
        }
        count_new
    }

    fn admit(&mut self, seq: Seq, message: Message, settings: &RelaySettings) -> bool {
        if !self.blocks.is_empty() {
            let is_crowded = self.waiting >= settings.window / 2;
            if !self.blocks.is_gapless(&message) || (is_crowded && self.blocks.covers(&message)) {
                self.blocks.pass_over(&message);
                return false;
            }
        }
        self.wait(seq, message, false);
        true
    }

    fn wait(&mut self, seq: Seq, message: Message, tried: bool) {
        self.waiting += 1;
        self.waiting_bytes += message.size();
        self.rows.insert(seq, Row::Waiting { message, tried });
    }

    fn stop_waiting(&mut self, message: &Message) {
        self.waiting -= 1;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(message.size());
    }

    // Publishing.

    /// Takes up to `room` rows that may go now, in order, into `batch`. Answers how many of them
    /// go again.
    pub(super) fn take(
        &mut self,
        room: usize,
        now: Instant,
        batch: &mut Vec<(Seq, Message)>,
    ) -> u64 {
        if self.underway > 0 || self.waiting == 0 || self.retiring || now >= self.until {
            return 0;
        }
        let chosen = self.choose(room, now);
        let mut resent = 0;
        for seq in chosen {
            let Some(Row::Waiting { message, tried }) = self.rows.remove(&seq) else { continue };
            resent += u64::from(tried);
            self.stop_waiting(&message);
            self.underway += 1;
            self.rows.insert(seq, Row::Underway(message.clone()));
            batch.push((seq, message));
        }
        resent
    }

    fn choose(&self, room: usize, now: Instant) -> Vec<Seq> {
        let mut probing: HashSet<Scope> = HashSet::new();
        let mut may_go = |message: &Message| match self.blocks.passage(message, now) {
            (Passage::Free, _) => true,
            (Passage::Probe, Some(scope)) => probing.insert(scope),
            (Passage::Probe | Passage::Closed, _) => false,
        };
        self.rows
            .iter()
            .filter_map(|(seq, row)| match row {
                Row::Waiting { message, .. } if may_go(message) => Some(*seq),
                _ => None,
            })
            .take(room)
            .collect()
    }

    /// Takes in the broker's answers for the rows that were under way, in order.
    pub(super) fn published(
        &mut self,
        seqs: &[Seq],
        answers: &[Result<Receipt, PublishError>],
        settings: &RelaySettings,
        now: Instant,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        self.underway = 0;
        let rows: Vec<_> = seqs
            .iter()
            .filter_map(|seq| match self.rows.remove(seq) {
                Some(Row::Underway(message)) => Some((*seq, message)),
                _ => None,
            })
            .collect();
        let messages: Vec<_> = rows.iter().map(|(_, message)| message).collect();
        let judgement = judge(&messages, answers, settings.key_policy);
        for ((seq, message), verdict) in rows.into_iter().zip(judgement.verdicts) {
            match verdict {
                Verdict::Confirmed => {
                    outcome.confirmed += 1;
                    if self.blocks.open(&message) {
                        self.rewind();
                    }
                    self.rows.insert(seq, Row::Confirmed);
                    self.confirmed += 1;
                    self.confirmed_since.get_or_insert(now);
                }
                Verdict::Again => {
                    outcome.failed += 1;
                    self.wait(seq, message, true);
                }
                Verdict::Bury(reason) => {
                    outcome.failed += 1;
                    // It was refused for itself: what it was the probe of works.
                    if self.blocks.open(&message) {
                        self.rewind();
                    }
                    self.rows.insert(seq, Row::Leaving);
                    outcome.bury.push((seq, message, reason));
                }
            }
        }
        for scope in judgement.close {
            self.blocks.close(scope, settings.backoff_min, settings.backoff_max, now);
        }
        self.leave_to_store(settings);
        outcome
    }

    /// Blocked rows fill half of the window at most, so that what is not blocked gets through. The
    /// first row of each scope stays in any case: it is the probe that opens the block again.
    fn leave_to_store(&mut self, settings: &RelaySettings) {
        if self.blocks.is_empty() {
            return;
        }
        let mut seen: HashSet<Scope> = HashSet::new();
        let mut count = 0;
        let mut surplus = Vec::new();
        for (seq, row) in &self.rows {
            let Row::Waiting { message, .. } = row else {
                continue;
            };
            let mut is_blocked = false;
            let mut is_first = false;
            for scope in self.blocks.scopes_of(message) {
                is_blocked = true;
                is_first |= seen.insert(scope);
            }
            count += usize::from(is_blocked);
            if is_blocked && !is_first && count > settings.window / 2 {
                surplus.push(*seq);
            }
        }
        for seq in surplus {
            if let Some(Row::Waiting { message, .. }) = self.rows.remove(&seq) {
                self.stop_waiting(&message);
                self.blocks.pass_over(&message);
            }
        }
    }

    // Removing.

    pub(super) fn count_confirmed(&self) -> usize {
        self.confirmed
    }

    pub(super) fn confirmed_since(&self) -> Option<Instant> {
        self.confirmed_since
    }

    /// The rows to remove now, if any.
    pub(super) fn take_confirmed(&mut self) -> Option<Confirmation> {
        if self.confirmed == 0 {
            return None;
        }
        self.confirmed = 0;
        self.confirmed_since = None;
        let mut rows = Vec::new();
        for (seq, row) in &mut self.rows {
            if matches!(row, Row::Confirmed) {
                *row = Row::Leaving;
                rows.push(*seq);
            }
        }
        Some(Confirmation { lease: self.lease.clone(), rows })
    }

    /// The store has removed or buried rows. `is_reading` when a read may still find them.
    pub(super) fn removed(&mut self, seqs: &[Seq], is_reading: bool) {
        for seq in seqs {
            self.rows.remove(seq);
        }
        if is_reading {
            self.gone.extend(seqs);
        }
    }

    /// The store could not; they are removed with the next ones.
    pub(super) fn not_removed(&mut self, seqs: &[Seq], now: Instant) {
        for seq in seqs {
            if let Some(row @ Row::Leaving) = self.rows.get_mut(seq) {
                *row = Row::Confirmed;
                self.confirmed += 1;
            }
        }
        self.confirmed_since.get_or_insert(now);
    }
}

#[cfg(test)]
mod tests;
