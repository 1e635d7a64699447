//! How many calls may be in progress at once, learnt from how long they take.
//!
//! A service that is given more calls than it can work on makes all of them slow, until none is
//! answered in time. So calls above a limit are refused at once, and the limit follows the service:
//! it rises while calls take as long as they always did, and falls when they take longer.
//!
//! [`LimitSettings::step`] decides; [`AdaptiveLimit`] counts, without a lock on the way in and out.

mod gradient;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::Priority;
pub use gradient::{Estimate, LimitSettings, Window};

/// The least number of calls that a window is judged by.
const CALLS_MIN: u32 = 10;

/// How a call that was let in ended, as far as the limit is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was worked on to its end, well or not: its time counts.
    Done,
    /// It ran into its deadline: a sign of overload, unless the caller gave it less time than calls
    /// usually take.
    TimedOut,
    /// It says nothing about the service: the caller went away.
    Ignored,
}

/// An adaptive limit. Shared between threads by reference.
///
/// Each `true` of [`Self::try_enter`] and [`Self::try_enter_as`] is answered by exactly one [`Self::leave`].
#[derive(Debug)]
pub struct AdaptiveLimit {
    settings: LimitSettings,
    limit: AtomicU32,
    in_flight: AtomicU32,
    window: OpenWindow,
    estimate: Mutex<Estimate>,
    /// How long calls may take before it is unusual, in microseconds; 0 while nothing is known.
    patience_micros: AtomicU64,
    origin: Instant,
}

/// What is being seen until the next decision.
#[derive(Debug, Default)]
struct OpenWindow {
    calls: AtomicU32,
    micros: AtomicU64,
    in_flight_max: AtomicU32,
    timed_out: AtomicBool,
    shed: AtomicBool,
    /// When it closes, in microseconds after the origin.
    closes: AtomicU64,
}

impl AdaptiveLimit {
    /// A limit that has seen nothing yet.
    #[must_use]
    pub fn new(settings: LimitSettings) -> Self {
        let estimate = settings.initial_estimate();
        Self {
            limit: AtomicU32::new(estimate.limit()),
            in_flight: AtomicU32::new(0),
            window: OpenWindow::default(),
            estimate: Mutex::new(estimate),
            patience_micros: AtomicU64::new(0),
            origin: Instant::now(),
            settings,
        }
    }

    /// Lets one more call in, or refuses it because as many as the limit are in progress.
    #[must_use]
    pub fn try_enter(&self) -> bool {
        self.try_enter_as(Priority::Default)
    }

    /// Lets one more call in, or refuses it because as many are in progress as calls of its priority
    /// may find.
    #[must_use]
    pub fn try_enter_as(&self, priority: Priority) -> bool {
        let now_in_flight = self.in_flight.fetch_add(1, Relaxed) + 1;
        let limit = self.limit.load(Relaxed);
        if now_in_flight > priority.places(limit) {
            self.in_flight.fetch_sub(1, Relaxed);
            // What is refused below the limit is no sign that the service has too much.
            if now_in_flight > limit {
                self.window.shed.store(true, Relaxed);
            }
            return false;
        }
        if now_in_flight > self.window.in_flight_max.load(Relaxed) {
            self.window.in_flight_max.fetch_max(now_in_flight, Relaxed);
        }
        true
    }

    /// The call that was let in ended at `now`, after `took`.
    pub fn leave(&self, took: Duration, now: Instant, outcome: Outcome) {
        self.in_flight.fetch_sub(1, Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        match outcome {
            Outcome::Ignored => return,
            // One impatient caller must not close the service for all others.
            Outcome::TimedOut if micros <= self.patience_micros.load(Relaxed) => return,
            Outcome::TimedOut => self.window.timed_out.store(true, Relaxed),
            Outcome::Done => {}
        }
        self.window.micros.fetch_add(micros, Relaxed);
        let calls = self.window.calls.fetch_add(1, Relaxed) + 1;
        if calls >= CALLS_MIN {
            let now = now.saturating_duration_since(self.origin);
            let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
            if now >= self.window.closes.load(Relaxed) {
                self.decide(now);
            }
        }
    }

    /// Closes the window and learns from it. Another thread that is doing so already is enough.
    fn decide(&self, now_micros: u64) {
        let Some(mut estimate) = self.estimate.try_lock() else {
            return;
        };
        // A window may lose or keep a call that ends in this moment; averages do not mind.
        let calls = self.window.calls.swap(0, Relaxed);
        let micros = self.window.micros.swap(0, Relaxed);
        if calls == 0 {
            return;
        }
        let window = Window {
            micros_mean: micros as f64 / f64::from(calls),
            in_flight_max: self.window.in_flight_max.swap(self.in_flight.load(Relaxed), Relaxed),
            timed_out: self.window.timed_out.swap(false, Relaxed),
            shed: self.window.shed.swap(false, Relaxed),
        };
        *estimate = self.settings.step(*estimate, window);
        self.limit.store(estimate.limit(), Relaxed);
        self.patience_micros.store(self.settings.patience_micros(&estimate), Relaxed);
        let length = u64::try_from(self.settings.window.as_micros()).unwrap_or(u64::MAX);
        self.window.closes.store(now_micros.saturating_add(length), Relaxed);
    }

    /// The most calls that may be in progress now.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    /// The calls in progress.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> LimitSettings {
        LimitSettings { initial: 2, min: 2, max: 50, ..LimitSettings::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_above_the_limit_are_refused_until_one_leaves() {
        let limit = AdaptiveLimit::new(settings());
        assert!(limit.try_enter());
        assert!(limit.try_enter());
        assert!(!limit.try_enter());
        assert_eq!(limit.in_flight(), 2);
        limit.leave(Duration::from_millis(1), Instant::now(), Outcome::Ignored);
        assert!(limit.try_enter());
    }

    #[tokio::test(start_paused = true)]
    async fn lower_priorities_are_refused_while_there_is_room_for_higher_ones() {
        let limit = AdaptiveLimit::new(LimitSettings { initial: 10, min: 10, ..settings() });
        let fill = |priority| (0..100).filter(|_| limit.try_enter_as(priority)).count();
        assert_eq!(fill(Priority::Probe), 5);
        assert_eq!(fill(Priority::Sheddable), 2);
        assert!(!limit.window.shed.load(Relaxed));
        assert_eq!(fill(Priority::Default), 3);
        assert!(limit.window.shed.load(Relaxed));
        assert_eq!(fill(Priority::Critical), 2);
        assert_eq!(limit.in_flight(), 12);
    }

    #[tokio::test(start_paused = true)]
    async fn impatient_callers_do_not_lower_the_limit() {
        let limit = AdaptiveLimit::new(LimitSettings { initial: 40, min: 2, ..settings() });
        let second = Duration::from_secs(1);
        let calls = async |took: Duration, outcome| {
            for _ in 0..100 {
                let entered = (0..20).filter(|_| limit.try_enter()).count();
                tokio::time::advance(second).await;
                for _ in 0..entered {
                    limit.leave(took, Instant::now(), outcome);
                }
            }
            limit.limit()
        };
        let usual = calls(Duration::from_millis(20), Outcome::Done).await;
        assert_eq!(calls(Duration::from_millis(5), Outcome::TimedOut).await, usual);
        assert!(calls(second, Outcome::TimedOut).await < usual);
    }

    #[tokio::test(start_paused = true)]
    async fn steady_times_under_full_use_raise_the_limit() {
        let limit = AdaptiveLimit::new(settings());
        for _ in 0..2_000 {
            assert!(limit.try_enter() && limit.try_enter());
            tokio::time::advance(Duration::from_millis(10)).await;
            for _ in 0..2 {
                limit.leave(Duration::from_millis(10), Instant::now(), Outcome::Done);
            }
        }
        assert!(limit.limit() > 2, "{}", limit.limit());
    }
}
