//! What one instance has of a limit that several share.
//!
//! It takes calls from the store in batches: as many as wait, and as many as it will probably let in
//! while a batch is good. So a call that comes rarely costs one question to the store, and at thousands
//! of calls a second the store is asked some twenty times a second. A batch is good for [`LEASE`] from
//! when it was asked for, and what is left of it then is lost; a slow store's answer, for which calls
//! waited, is good for half of that from when it came. So whatever the number of instances:
//!
//! * in a time T no more is let in than the rate gives in T + [`LEASE`], and one burst; or in T and the
//!   time of an answer and half a [`LEASE`], where that is more
//! * an instance leaves unused no more than the rate gives in [`LEASE`], and only where its calls stop
//!   coming
//!
//! When the store has no more, the instance refuses by itself until it has.

use std::time::Duration;

use super::{RateSettings, Taken, nanos};

/// How long calls that were taken from the store may be let in, from when they were asked for.
pub const LEASE: Duration = Duration::from_millis(100);
/// A store that has nothing left is not asked again sooner, unless the burst is used up faster.
const PACE: Duration = Duration::from_millis(5);

/// What an instance has of one key. Times are nanoseconds after any origin.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    /// Calls that may be let in, those that end first in front.
    lots: [Lot; 2],
    /// How many were wanted last.
    batch: u32,
    /// How many of them whether or not a call waited.
    ahead: u32,
    /// Calls that came and were not refused since the store was last asked.
    came: u32,
    /// Those of them that wait for the answer.
    waiting: u32,
    asked_at: u64,
    is_asking: bool,
    /// Until when the store has nothing.
    closed_until: u64,
}

/// Calls that may be let in until some time.
#[derive(Clone, Copy, Debug, Default)]
struct Lot {
    calls: u32,
    ends: u64,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It is let in.
    In,
    /// It is refused; one that comes after so many nanoseconds may be let in.
    Refused(u64),
    /// It has to wait for the next answer of the store, and then to enter again.
    Waits,
}

impl Share {
    /// Decides about a call at `now`.
    pub fn enter(&mut self, now: u64) -> Entry {
        if let Some(lot) = self.lots.iter_mut().find(|lot| lot.calls > 0 && lot.ends > now) {
            lot.calls -= 1;
            self.came = self.came.saturating_add(1);
            return Entry::In;
        }
        if self.closed_until > now {
            return Entry::Refused(self.closed_until - now);
        }
        self.came = self.came.saturating_add(1);
        self.waiting = self.waiting.saturating_add(1);
        Entry::Waits
    }

    /// Whether the store is to be asked now: calls wait, or soon will. Whoever is told so does it
    /// ([`Self::ask`]); nobody else is until there is an answer.
    pub fn begins_asking(&mut self, now: u64) -> bool {
        let left: u32 = self.lots.iter().filter(|lot| lot.ends > now).map(|lot| lot.calls).sum();
        let soon = self.ahead >= 4 && left <= self.ahead / 4 && self.came > self.ahead / 2;
        let due = !self.is_asking && self.closed_until <= now && (self.waiting > 0 || soon);
        self.is_asking |= due;
        due
    }

    /// Begins to ask, whether or not a call waits; `false` when somebody asks already.
    pub fn begins_probing(&mut self) -> bool {
        !std::mem::replace(&mut self.is_asking, true)
    }

    /// How many calls to ask for, at `now`.
    pub fn ask(&mut self, rate: &RateSettings, now: u64) -> u32 {
        let lease = nanos(LEASE);
        let half_a_lease_ago = now.saturating_sub(lease / 2);
        // As many as came since, unless that was a short time: then more will come.
        let likely = if self.batch > 0 && self.asked_at > half_a_lease_ago {
            self.batch.saturating_mul(2)
        } else if self.batch > 0 && now - self.asked_at <= lease.saturating_mul(2) {
            self.came
        } else {
            1
        };
        let most = lease / rate.interval_nanos();
        let most = u32::try_from(most).unwrap_or(u32::MAX).min(rate.burst).max(1);
        self.ahead = likely.clamp(1, most);
        self.batch = self.ahead.max(self.waiting);
        self.asked_at = now;
        self.came = 0;
        self.batch
    }

    /// The store answered what was asked last, at `now`. Whoever waits has to enter again, in order and
    /// before anybody else.
    pub fn answered(&mut self, rate: &RateSettings, taken: Taken, now: u64) {
        self.settled();
        let lease = nanos(LEASE);
        let ends = self.asked_at.saturating_add(lease).max(now.saturating_add(lease / 2));
        let lot = Lot { calls: taken.granted, ends };
        let [first, second] = self.lots.map(|lot| if lot.ends > now { lot.calls } else { 0 });
        self.lots = match (first, second) {
            (_, 0) => [self.lots[0], lot],
            (0, _) => [self.lots[1], lot],
            // Two are enough: what is left of them ends with the first.
            _ => [Lot { calls: first.saturating_add(second), ends: self.lots[0].ends }, lot],
        };
        if taken.granted < self.batch {
            let pace = nanos(PACE).min(rate.ahead_nanos() / 2);
            self.closed_until = now.saturating_add(nanos(taken.wait).max(pace));
        }
    }

    /// The store did not answer. Whoever waits has to be decided about without it.
    pub fn failed(&mut self) {
        self.settled();
    }

    fn settled(&mut self) {
        self.is_asking = false;
        self.waiting = 0;
    }

    /// Whether this is as good as new, and can be forgotten.
    #[must_use]
    pub fn is_idle(&self, now: u64) -> bool {
        !self.is_asking
            && self.closed_until <= now
            && self.lots.iter().all(|lot| lot.ends <= now)
            && self.asked_at.saturating_add(2 * nanos(LEASE)) <= now
    }
}

#[cfg(test)]
mod tests;
