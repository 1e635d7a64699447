//! A second attempt beside the first, when the first takes longer than most.
//!
//! After Dean and Barroso, "The Tail at Scale" (2013), and the hedging policy of gRFC A6, with a delay
//! that is learnt: the time in which 95 % of the attempts are answered. So one call in twenty is
//! hedged, and a budget keeps it at that when the target becomes slow for all of them; a target that
//! is overloaded must not be asked twice.
//!
//! A call has at most one hedge, to another instance. The first answer that is no failure wins, and
//! the other attempt is cancelled.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::quantile::Quantile;
use crate::retry::{Permission, Pushback};
use crate::window::micros;
use crate::{Budget, BudgetSettings};

/// How many answers are seen before the delay is taken from them.
const SAMPLES_MIN: u64 = 1_000;
/// With a larger part of the calls throttled nothing is hedged.
const DROP_MAX: f64 = 0.5;

/// When a second attempt is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HedgeSettings {
    /// How long the first attempt may take, until a thousand answers have shown it.
    pub delay: Duration,
    /// The part of the answers that come without a hedge, in `0.0..=1.0`.
    pub quantile: f64,
    /// What the hedges of the target may amount to.
    pub budget: BudgetSettings,
}

impl Default for HedgeSettings {
    fn default() -> Self {
        Self { delay: Duration::from_millis(100), quantile: 0.95, budget: BudgetSettings::HEDGE }
    }
}

/// Why a method cannot be hedged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HedgeError {
    /// A second attempt would have effects of its own.
    #[error(
        "a method that may have effects cannot be hedged; set `idempotency_level = NO_SIDE_EFFECTS` \
         if it has none"
    )]
    SideEffects,
    /// Without a delay every call would be sent twice.
    #[error("a hedge needs a delay of more than nothing")]
    NoDelay,
}

/// The hedging of one method. Shared between threads by reference.
#[derive(Debug)]
pub struct Hedge {
    settings: HedgeSettings,
    origin: Instant,
    times: Quantile,
    budget: Budget,
    /// Until when there are no hedges, in microseconds after the origin.
    paused_until: AtomicU64,
}

impl Hedge {
    /// For a method with this permission, of which nothing was seen yet.
    ///
    /// # Errors
    /// The method may have side effects, or the delay is zero.
    pub fn new(
        settings: HedgeSettings,
        permission: Permission,
        now: Instant,
    ) -> Result<Self, HedgeError> {
        if permission < Permission::NoSideEffects {
            return Err(HedgeError::SideEffects);
        }
        if settings.delay.is_zero() {
            return Err(HedgeError::NoDelay);
        }
        Ok(Self {
            origin: now,
            times: Quantile::new(settings.quantile),
            budget: Budget::new(settings.budget, now),
            paused_until: AtomicU64::new(0),
            settings,
        })
    }

    /// A call begins: after how much time without an answer [`Self::try_send`] is to be asked. `None`
    /// when this call is not hedged. `drop_part` is what the throttle of the target refuses
    /// ([`Throttle::drop_part`](crate::Throttle::drop_part)).
    pub fn begin(&self, now: Instant, drop_part: f64) -> Option<Duration> {
        self.budget.count_call(now);
        self.is_on(now, drop_part).then(|| self.delay())
    }

    /// Whether the second attempt is sent now. `true` has taken it from the budget.
    #[must_use]
    pub fn try_send(&self, now: Instant, drop_part: f64) -> bool {
        self.is_on(now, drop_part) && self.budget.try_spend(now)
    }

    /// An attempt was answered after so much time. One that was cancelled, since the other was
    /// faster, counts with the time it had until then; else the slow ones would never be seen.
    pub fn record(&self, took: Duration) {
        self.times.record(took);
    }

    /// No hedges for so long from `now`, five minutes at most ([`Pushback::WAIT_MAX`]): the target
    /// sheds load, or asked not to be tried again.
    pub fn pause(&self, now: Instant, wait: Duration) {
        let until = self.since_origin(now).saturating_add(micros(wait.min(Pushback::WAIT_MAX)));
        self.paused_until.fetch_max(until, Relaxed);
    }

    /// How long the first attempt may take now; never zero.
    #[must_use]
    pub fn delay(&self) -> Duration {
        if self.times.seen() < SAMPLES_MIN { self.settings.delay } else { self.times.value() }
    }

    fn is_on(&self, now: Instant, drop_part: f64) -> bool {
        drop_part <= DROP_MAX && self.since_origin(now) >= self.paused_until.load(Relaxed)
    }

    fn since_origin(&self, at: Instant) -> u64 {
        micros(at.saturating_duration_since(self.origin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn hedge(now: Instant) -> Hedge {
        Hedge::new(HedgeSettings::default(), Permission::NoSideEffects, now).unwrap()
    }

    #[test]
    fn what_has_effects_or_no_delay_is_refused() {
        let now = Instant::now();
        let refused = |settings, permission| Hedge::new(settings, permission, now).err();
        let usual = HedgeSettings::default();
        assert_eq!(refused(usual, Permission::Idempotent), Some(HedgeError::SideEffects));
        let at_once = HedgeSettings { delay: Duration::ZERO, ..usual };
        assert_eq!(refused(at_once, Permission::NoSideEffects), Some(HedgeError::NoDelay));
    }

    #[test]
    fn the_delay_is_learnt_from_a_thousand_answers() {
        let hedge = hedge(Instant::now());
        (0..999).for_each(|n| hedge.record(MS * if n % 100 < 96 { 8 } else { 200 }));
        assert_eq!(hedge.delay(), 100 * MS);
        (0..100).for_each(|_| hedge.record(8 * MS));
        let delay = hedge.delay();
        assert!(8 * MS <= delay && delay <= 9 * MS, "{delay:?}");
        (0..2_000).for_each(|_| hedge.record(Duration::ZERO));
        (0..2_000).for_each(|_| hedge.record(Duration::ZERO));
        assert!(hedge.delay() > Duration::ZERO);
    }

    #[test]
    fn nothing_is_hedged_while_the_target_is_in_trouble() {
        let start = Instant::now();
        let hedge = hedge(start);
        (0..1_000).for_each(|_| assert!(hedge.begin(start, 0.5).is_some()));
        assert_eq!(hedge.begin(start, 0.51), None);
        assert!(!hedge.try_send(start, 0.51));
        hedge.pause(start, 2 * MS);
        hedge.pause(start, MS);
        assert_eq!(hedge.begin(start + MS, 0.0), None);
        assert!(!hedge.try_send(start + MS, 0.0));
        assert!(hedge.try_send(start + 2 * MS, 0.0));
    }

    #[test]
    fn no_word_of_a_server_stops_hedging_for_good() {
        for asked in [Pushback::WAIT_MAX, Duration::from_secs(i64::MAX as u64), Duration::MAX] {
            let start = Instant::now();
            let hedge = hedge(start);
            hedge.pause(start, asked);
            assert!(hedge.begin(start + Pushback::WAIT_MAX - MS, 0.0).is_none(), "{asked:?}");
            assert!(hedge.begin(start + Pushback::WAIT_MAX, 0.0).is_some(), "{asked:?}");
        }
    }

    #[test]
    fn one_call_in_twenty_is_hedged_however_slow_all_are() {
        let start = Instant::now();
        let hedge = hedge(start);
        let sent = (0..60_000_u32).filter(|call| {
            let now = start + *call * MS;
            hedge.begin(now, 0.0).is_some() && hedge.try_send(now + 100 * MS, 0.0)
        });
        let part = sent.count() as f64 / 60_000.0;
        assert!((0.045..=0.05).contains(&part), "{part}");
    }
}
