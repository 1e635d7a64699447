//! Fewer calls to a target that fails most of them, decided by the caller.
//!
//! "Adaptive throttling" of Google's SRE book (chapter "Handling Overload"): a caller that sees less
//! than one in `k` of its calls accepted refuses the rest itself, so that a target in trouble is not
//! kept there by the work of failing. The book's formula alone takes ten minutes to let calls through
//! after a minute of full outage. Three things make that seconds, at any rate of calls:
//!
//! * the window is three seconds long, not two minutes;
//! * no more than 98 % are refused, so there are always calls to learn from;
//! * one call a second goes through however few there are.
//!
//! Attempts count when they end. What is still in progress says nothing, or a target whose calls last
//! longer than the window would look as if it accepted none. Own refusals count among the requests and
//! never among the failures. A target that sheds load is one that accepts less: the book's case.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::Verdict;
use crate::window::{Window, micros};

/// When a throttle begins to refuse, and how much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThrottleSettings {
    /// How many requests may come on each accepted one before any is refused; at least 1. The
    /// smaller, the more is refused.
    pub k: f64,
    /// The stretch of time that is looked at.
    pub window: Duration,
    /// Below so many requests in the window nothing is refused.
    pub requests_min: u64,
    /// The largest part that is refused, in `0.0..1.0`.
    pub drop_max: f64,
    /// At least one request goes through in each of these.
    pub probe_interval: Duration,
}

impl Default for ThrottleSettings {
    fn default() -> Self {
        Self {
            k: 2.0,
            window: Duration::from_secs(3),
            requests_min: 20,
            drop_max: 0.98,
            probe_interval: Duration::from_secs(1),
        }
    }
}

impl ThrottleSettings {
    /// The part of the requests to refuse after so many were accepted, and so many failed or were
    /// refused.
    #[must_use]
    pub fn drop_part(&self, accepted: u64, unaccepted: u64) -> f64 {
        let requests = accepted.saturating_add(unaccepted);
        if requests < self.requests_min {
            return 0.0;
        }
        let missing = requests as f64 - self.k.max(1.0) * accepted as f64;
        (missing / (requests as f64 + 1.0)).clamp(0.0, self.drop_max.clamp(0.0, 1.0))
    }
}

/// The throttle of one target, or of one method of it. Shared between threads by reference.
///
/// While nothing fails, asking costs one load and an attempt that ends costs one addition.
#[derive(Debug)]
pub struct Throttle {
    settings: ThrottleSettings,
    origin: Instant,
    accepted: Window,
    unaccepted: Window,
    /// Until when something in the window may not have been accepted; in microseconds after the
    /// origin, 0 before the first failure.
    troubled_until: AtomicU64,
    /// When a request was last let through while others were refused.
    let_through: AtomicU64,
    /// Parts of requests that may go through; each time it overflows, one does.
    credit: AtomicU32,
}

impl Throttle {
    /// A throttle that has seen nothing yet.
    #[must_use]
    pub fn new(settings: ThrottleSettings, now: Instant) -> Self {
        let window = || Window::new(settings.window, now);
        Self {
            origin: now,
            accepted: window(),
            unaccepted: window(),
            troubled_until: AtomicU64::new(0),
            let_through: AtomicU64::new(0),
            credit: AtomicU32::new(0),
            settings,
        }
    }

    /// Lets a request through, or refuses it.
    ///
    /// Those that go through are spread evenly. To draw them by lot comes to the same on average, but
    /// an unlucky second in which none goes through made the worst recovery half as long again.
    ///
    /// A refusal is final for the call: it must not be tried again, and counts against no instance.
    #[must_use]
    pub fn try_admit(&self, now: Instant) -> bool {
        let part = self.drop_part(now);
        if part <= 0.0 {
            return true;
        }
        let step = whole_of((1.0 - part) * f64::from(u32::MAX));
        if self.credit.fetch_add(step, Relaxed).checked_add(step).is_none() {
            self.let_through.store(self.since_origin(now), Relaxed);
            return true;
        }
        self.probe_is_due(now) || {
            self.note_unaccepted(now);
            false
        }
    }

    /// An attempt that was let through has ended.
    pub fn record(&self, verdict: Verdict, now: Instant) {
        match verdict {
            Verdict::Accepted => self.accepted.count(now),
            Verdict::Failed | Verdict::Shed => self.note_unaccepted(now),
            Verdict::Neutral => {}
        }
    }

    /// The part of the requests that is refused now, from 0 to the setting's maximum.
    #[must_use]
    pub fn drop_part(&self, now: Instant) -> f64 {
        if self.since_origin(now) >= self.troubled_until.load(Relaxed) {
            return 0.0;
        }
        self.settings.drop_part(self.accepted.sum(now), self.unaccepted.sum(now))
    }

    fn note_unaccepted(&self, now: Instant) {
        self.unaccepted.count(now);
        let until = self.since_origin(now).saturating_add(micros(self.settings.window));
        self.troubled_until.fetch_max(until, Relaxed);
    }

    /// Whether nothing was let through for so long that this request is, out of its turn. Only
    /// one of several threads gets a yes.
    fn probe_is_due(&self, now: Instant) -> bool {
        let last = self.let_through.load(Relaxed);
        let now = self.since_origin(now);
        now.saturating_sub(last) >= micros(self.settings.probe_interval)
            && self.let_through.compare_exchange(last, now, Relaxed, Relaxed).is_ok()
    }

    fn since_origin(&self, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.origin))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a part of the largest u32 fits"
)]
fn whole_of(part: f64) -> u32 {
    part as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formula_refuses_what_is_more_than_k_times_the_accepted() {
        let cases = [
            (100, 0, 0.0),
            (50, 50, 0.0),
            (0, 19, 0.0),
            (25, 75, 50.0 / 101.0),
            (10, 90, 80.0 / 101.0),
            (0, 20, 20.0 / 21.0),
            (0, 1_000, 0.98),
            (u64::MAX, u64::MAX, 0.0),
        ];
        for (accepted, unaccepted, expected) in cases {
            let part = ThrottleSettings::default().drop_part(accepted, unaccepted);
            assert!((part - expected).abs() < 1e-9, "{accepted}, {unaccepted}: {part}");
        }
    }

    #[test]
    fn what_says_nothing_about_the_target_counts_nowhere() {
        let now = Instant::now();
        let throttle = Throttle::new(ThrottleSettings::default(), now);
        for _ in 0..1_000 {
            throttle.record(Verdict::Neutral, now);
        }
        assert_eq!(throttle.drop_part(now), 0.0);
        for _ in 0..1_000 {
            throttle.record(Verdict::Failed, now);
        }
        assert_eq!(throttle.drop_part(now), 0.98);
    }

    #[test]
    fn a_target_that_sheds_most_of_its_load_gets_less() {
        for (shed, part) in [(50, 0.0), (75, 50.0 / 101.0), (100, 0.98)] {
            let now = Instant::now();
            let throttle = Throttle::new(ThrottleSettings::default(), now);
            (shed..100).for_each(|_| throttle.record(Verdict::Accepted, now));
            (0..shed).for_each(|_| throttle.record(Verdict::Shed, now));
            assert!((throttle.drop_part(now) - part).abs() < 1e-9, "{shed} of 100");
        }
    }

    #[test]
    fn calls_that_last_longer_than_the_window_are_not_missed() {
        let start = Instant::now();
        let throttle = Throttle::new(ThrottleSettings::default(), start);
        // A thousand calls a second that take ten seconds each: none has ended yet.
        for call in 0..9_000 {
            assert!(throttle.try_admit(start + Duration::from_millis(call)));
        }
    }

    #[test]
    fn one_call_a_second_goes_through_however_few_there_are() {
        let start = Instant::now();
        let throttle = Throttle::new(ThrottleSettings::default(), start);
        (0..100).for_each(|_| throttle.record(Verdict::Failed, start));
        // Ten calls a second: two in a hundred would be one in five seconds.
        let admitted = (0..100).filter(|call| {
            let now = start + Duration::from_millis(100 * *call);
            let admitted = throttle.try_admit(now);
            if admitted {
                throttle.record(Verdict::Failed, now);
            }
            admitted
        });
        assert!((8..=12).contains(&admitted.count()));
    }

    #[test]
    fn after_a_quiet_window_everything_is_let_through() {
        let start = Instant::now();
        let throttle = Throttle::new(ThrottleSettings::default(), start);
        (0..100).for_each(|_| throttle.record(Verdict::Failed, start));
        assert!(!throttle.try_admit(start));
        assert!(throttle.try_admit(start + Duration::from_secs(4)));
    }
}
