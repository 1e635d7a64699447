//! How many extra attempts a target may be sent, as a part of the calls made to it.
//!
//! Retries make an overload worse: three layers that make three attempts each send 27 calls for one.
//! A budget per target bounds that for all calls together, whatever each of them may do. The idea is
//! Finagle's retry budget (2016); the arithmetic is a sum over a window, so that any ratio means what
//! it says and what is in backoff has been paid for already.
//!
//! # How much more the target sees
//! In every window of ten seconds the target sees at most `1 + ratio` times the calls, or
//! `per_second_min` attempts a second more than the calls where that is more. The minimum is a floor
//! and not an addition: with 20 % and 10 a second it only matters below 50 calls a second, and above
//! that 1.2 is the bound. Without a floor a target that is called once a minute could never be retried.
//!
//! That is the bound for one layer; three layers of retries would multiply theirs to 1.2³ = 1.73. So
//! only one layer retries: see [`Attempts`](crate::retry::Attempts).

use std::time::Duration;

use tokio::time::Instant;

use crate::window::Window;

/// What a budget allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetSettings {
    /// Extra attempts per call; any number from 0.
    pub ratio: f64,
    /// Extra attempts per second that are allowed however few calls there are.
    pub per_second_min: f64,
    /// How long a call counts, and how long an attempt that was paid for does.
    pub window: Duration,
}

impl BudgetSettings {
    /// For retries: a fifth of the calls, at least ten a second, over ten seconds.
    pub const RETRY: Self =
        Self { ratio: 0.2, per_second_min: 10.0, window: Duration::from_secs(10) };

    /// For hedges: a twentieth of the calls, over ten seconds.
    pub const HEDGE: Self =
        Self { ratio: 0.05, per_second_min: 0.0, window: Duration::from_secs(10) };

    /// How many extra attempts may lie in a window with so many calls.
    fn allowance(&self, calls: u64) -> f64 {
        let floor = self.per_second_min * self.window.as_secs_f64();
        (self.ratio * calls as f64).max(floor)
    }
}

/// The budget of one target. Shared between threads by reference; a call costs one atomic addition.
#[derive(Debug)]
pub struct Budget {
    settings: BudgetSettings,
    calls: Window,
    spent: Window,
}

impl Budget {
    /// A budget that has seen nothing yet.
    #[must_use]
    pub fn new(settings: BudgetSettings, now: Instant) -> Self {
        let window = || Window::new(settings.window, now);
        Self { calls: window(), spent: window(), settings }
    }

    /// Counts a call. To be called for its first attempt, and only when that is not a part of
    /// somebody's second one ([`Attempts::previous`](crate::Attempts::previous) is 0): extra attempts
    /// must not earn further ones.
    pub fn count_call(&self, now: Instant) {
        self.calls.count(now);
    }

    /// Takes one extra attempt out of the budget, or says that there is none left.
    ///
    /// To be called when the attempt is decided on, before its backoff: what waits for its time is
    /// on its way. What was taken comes back when the window has passed, not before.
    #[must_use]
    pub fn try_spend(&self, now: Instant) -> bool {
        self.spent.count_up_to(self.settings.allowance(self.calls.sum(now)), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What part of 1,000 calls a second, for a minute, is tried again when all fail.
    fn retried(settings: BudgetSettings, calls_per_second: u32) -> f64 {
        let start = Instant::now();
        let budget = Budget::new(settings, start);
        let calls = 60 * calls_per_second;
        let spent = (0..calls).filter(|call| {
            let now = start + Duration::from_secs(1) * *call / calls_per_second;
            budget.count_call(now);
            budget.try_spend(now)
        });
        spent.count() as f64 / f64::from(calls)
    }

    #[test]
    fn every_ratio_is_what_it_says() {
        for ratio in [0.0, 0.05, 0.2, 0.3, 0.4, 0.7, 0.9, 1.0] {
            let settings = BudgetSettings { ratio, per_second_min: 0.0, ..BudgetSettings::RETRY };
            let part = retried(settings, 1_000);
            println!("ratio {ratio}: {:.2} % tried again", part * 100.0);
            assert!((part - ratio).abs() < 0.001, "{ratio}: {part}");
        }
    }

    #[test]
    fn the_minimum_is_a_floor_and_no_addition() {
        assert!(retried(BudgetSettings::RETRY, 1_000) <= 0.2);
        // Twenty calls a second would earn four; the floor gives ten.
        let part = retried(BudgetSettings::RETRY, 20);
        assert!((0.5..=0.6).contains(&part), "{part}");
        assert!(retried(BudgetSettings::RETRY, 5) > 0.99);
    }

    #[test]
    fn what_was_spent_comes_back_after_the_window() {
        let start = Instant::now();
        let budget = Budget::new(BudgetSettings::RETRY, start);
        let spend = |now| (0..1_000).filter(|_| budget.try_spend(now)).count();
        assert_eq!(spend(start), 100);
        assert_eq!(spend(start + Duration::from_secs(9)), 0);
        assert_eq!(spend(start + Duration::from_secs(10)), 100);
    }
}
