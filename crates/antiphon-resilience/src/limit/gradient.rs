//! The decision: from one window of calls to the next limit.
//!
//! After Gradient2 of Netflix's concurrency-limits library, with corrections for what its users
//! found: room for a queue is added only while nothing is slower than it was (else the limit creeps
//! up under mild overload), a call that timed out counts as the steepest gradient whatever its time,
//! and times seen while calls are being refused change the notion of "as it always was" only slowly
//! (else a long overload becomes the new normal).

use std::time::Duration;

/// Windows after which the long-time average has forgotten about two thirds of what was before.
const MEMORY_WINDOWS: f64 = 600.0;
/// How much slower it learns from windows in which calls were refused.
const OVERLOAD_MEMORY_FACTOR: f64 = 10.0;
/// Windows at the start that are averaged evenly.
const WARM_UP_WINDOWS: f64 = 10.0;
/// The steepest way down in one step.
const GRADIENT_MIN: f64 = 0.5;

/// The bounds and the temper of a limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LimitSettings {
    /// The limit before anything was seen.
    pub initial: u32,
    /// The limit never falls below this; at least 1.
    pub min: u32,
    /// The limit never rises above this.
    pub max: u32,
    /// How many times longer than usual calls may take before the limit falls; at least 1.
    pub tolerance: f64,
    /// How much longer than that they may take besides. Nobody minds milliseconds, and a method that
    /// takes a few microseconds takes a hundred times as long when a few calls come at once.
    pub slack: Duration,
    /// How much of the way to the computed limit one window goes, in `0.0..=1.0`.
    pub smoothing: f64,
    /// How long calls are watched before the limit changes.
    pub window: Duration,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            initial: 100,
            min: 20,
            max: 2_000,
            tolerance: 1.5,
            slack: Duration::from_millis(5),
            smoothing: 0.2,
            window: Duration::from_millis(100),
        }
    }
}

/// What is known of a service.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    limit: f64,
    /// How long calls always took, in microseconds.
    micros_long: f64,
    /// Windows that `micros_long` is made of, counted up to the end of the warm-up.
    windows: f64,
}

/// What was seen in one stretch of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// How long calls took on average, in microseconds. Milliseconds would see nothing of a service
    /// that answers faster than that.
    pub micros_mean: f64,
    /// The most calls that were in progress at once.
    pub in_flight_max: u32,
    /// Whether any ran into its deadline.
    pub timed_out: bool,
    /// Whether any was refused.
    pub shed: bool,
}

impl Estimate {
    /// The limit in whole calls.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "kept between the bounds of the settings, which are u32"
    )]
    pub fn limit(&self) -> u32 {
        self.limit as u32
    }
}

impl LimitSettings {
    /// Nothing was seen yet.
    #[must_use]
    pub fn initial_estimate(&self) -> Estimate {
        Estimate { limit: self.clamp(f64::from(self.initial)), micros_long: 0.0, windows: 0.0 }
    }

    fn clamp(&self, limit: f64) -> f64 {
        let min = self.min.max(1);
        limit.clamp(f64::from(min), f64::from(self.max.max(min)))
    }

    /// How long a call may take before that is unusual, in microseconds.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a time is not negative, and one too long for u64 is as good as any that fits"
    )]
    pub fn patience_micros(&self, estimate: &Estimate) -> u64 {
        self.micros_tolerated(estimate) as u64
    }

    fn micros_tolerated(&self, estimate: &Estimate) -> f64 {
        self.tolerance.max(1.0) * estimate.micros_long + self.slack.as_secs_f64() * 1_000_000.0
    }

    /// What is known after `window`.
    #[must_use]
    pub fn step(&self, estimate: Estimate, window: Window) -> Estimate {
        let short = window.micros_mean.max(1.0);
        let mut next = estimate.learn(short, window.shed);
        // Much faster than usual: what was usual was an overload, or is over.
        if next.micros_long > 2.0 * short {
            next.micros_long *= 0.95;
        }
        // When the limit was not nearly reached, the times say nothing about it.
        let used = f64::from(window.in_flight_max) >= estimate.limit / 2.0;
        if !used && !window.timed_out {
            return next;
        }
        let gradient = if window.timed_out {
            GRADIENT_MIN
        } else {
            (self.micros_tolerated(&next) / short).clamp(GRADIENT_MIN, 1.0)
        };
        let room = if gradient < 1.0 { 0.0 } else { estimate.limit.sqrt() };
        let target = estimate.limit * gradient + room;
        let smoothing = self.smoothing.clamp(0.0, 1.0);
        next.limit = self.clamp(estimate.limit + (target - estimate.limit) * smoothing);
        next
    }
}

impl Estimate {
    /// Moves the long-time average towards `short`.
    fn learn(self, short: f64, shed: bool) -> Self {
        if self.windows < WARM_UP_WINDOWS {
            let windows = self.windows + 1.0;
            let micros_long = self.micros_long + (short - self.micros_long) / windows;
            return Self { micros_long, windows, ..self };
        }
        let slower = shed && short > self.micros_long;
        let memory = MEMORY_WINDOWS * if slower { OVERLOAD_MEMORY_FACTOR } else { 1.0 };
        let micros_long = self.micros_long + (short - self.micros_long) * 2.0 / (memory + 1.0);
        Self { micros_long, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: LimitSettings = LimitSettings {
        initial: 100,
        min: 20,
        max: 200,
        tolerance: 1.5,
        slack: Duration::ZERO,
        smoothing: 0.2,
        window: Duration::from_millis(100),
    };

    fn usual() -> Estimate {
        Estimate { limit: 100.0, micros_long: 1_000.0, windows: WARM_UP_WINDOWS }
    }

    fn window(micros_mean: f64) -> Window {
        Window { micros_mean, in_flight_max: 100, timed_out: false, shed: false }
    }

    #[test]
    fn one_window_moves_the_limit_as_it_should() {
        let cases = [
            ("as usual: up by a fifth of the root", window(1_000.0), 102.0),
            ("within the tolerance: up", window(1_400.0), 102.0),
            ("twice as slow: down by a fifth of a quarter", window(2_000.0), 95.0),
            ("ten times as slow: down by a fifth of a half", window(10_000.0), 90.0),
            ("hardly used: as it was", Window { in_flight_max: 10, ..window(9_000.0) }, 100.0),
            (
                "a time-out: down whatever the time",
                Window { timed_out: true, ..window(10.0) },
                90.0,
            ),
        ];
        for (name, window, expected) in cases {
            let next = SETTINGS.step(usual(), window);
            assert!((next.limit - expected).abs() < 0.5, "{name}: {}", next.limit);
        }
    }

    #[test]
    fn a_few_milliseconds_are_no_overload() {
        let settings = LimitSettings { slack: Duration::from_millis(5), ..SETTINGS };
        assert!(settings.step(usual(), window(6_000.0)).limit > 101.0);
        assert!(settings.step(usual(), window(13_000.0)).limit < 95.5);
    }

    #[test]
    fn the_limit_stays_within_its_bounds() {
        let mut estimate = usual();
        for _ in 0..1_000 {
            estimate = SETTINGS.step(estimate, window(1_000.0));
        }
        assert_eq!(estimate.limit(), 200);
        for _ in 0..1_000 {
            estimate = SETTINGS.step(estimate, Window { timed_out: true, ..window(1_000.0) });
        }
        assert_eq!(estimate.limit(), 20);
    }

    #[test]
    fn a_minute_of_overload_does_not_become_the_new_normal() {
        let mut estimate = usual();
        for _ in 0..600 {
            estimate = SETTINGS.step(estimate, Window { shed: true, ..window(3_000.0) });
        }
        assert!(estimate.micros_long < 1_500.0, "{}", estimate.micros_long);
        assert_eq!(estimate.limit(), 20);
    }

    #[test]
    fn a_service_that_became_slower_for_good_gets_its_limit_back() {
        let mut estimate = usual();
        for _ in 0..12_000 {
            estimate = SETTINGS.step(estimate, Window { shed: true, ..window(3_000.0) });
        }
        assert_eq!(estimate.limit(), 200);
    }

    #[test]
    fn a_slow_start_is_forgotten_soon() {
        let mut estimate = Estimate { micros_long: 50_000.0, ..usual() };
        for _ in 0..100 {
            estimate = SETTINGS.step(estimate, window(1_000.0));
        }
        assert!(estimate.micros_long < 2_200.0, "{}", estimate.micros_long);
    }
}
