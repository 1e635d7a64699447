//! Whether and when trying again makes sense.

use std::time::Duration;

/// What a failure says about trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It may work the next time; the policy decides when.
    Later,
    /// It may work, but not before this much time.
    After(Duration),
    /// What is needed is away (a broker, a database, a service): try again, and do not count it.
    Outage,
    /// It will fail the same way again.
    Never,
}

/// How often and how fast to try again: exponential, with full jitter, bounded.
///
/// The waiting time before try `n + 1` is drawn evenly from half of `delay_initial · 2^(n-1)`
/// (capped at `delay_max`) to all of it ("equal jitter", AWS Architecture Blog, 2015).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How many tries in all, the first included; at least 1.
    pub attempts_max: u32,
    /// The wait after the first failure.
    pub delay_initial: Duration,
    /// The longest wait.
    pub delay_max: Duration,
}

/// What to do after a failed try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Try again after this much time.
    RetryAfter(Duration),
    /// Stop.
    GiveUp,
}

impl RetryPolicy {
    /// One try, no more.
    #[must_use]
    pub const fn none() -> Self {
        Self { attempts_max: 1, delay_initial: Duration::ZERO, delay_max: Duration::ZERO }
    }

    /// Waits that double from `initial` up to `max`, eight tries in all.
    #[must_use]
    pub const fn exponential(initial: Duration, max: Duration) -> Self {
        Self { attempts_max: 8, delay_initial: initial, delay_max: max }
    }

    /// The same waits with another number of tries.
    #[must_use]
    pub const fn attempts(mut self, attempts_max: u32) -> Self {
        self.attempts_max = attempts_max;
        self
    }

    /// Decides after try number `attempt` (from 1) failed with `hint`.
    ///
    /// `jitter` in `0.0..=1.0` places the wait between half of the full backoff (0) and all of it (1);
    /// callers pass a random number, tests a fixed one. An outage never gives up.
    #[must_use]
    pub fn decide(&self, attempt: u32, hint: Retry, jitter: f64) -> Decision {
        let attempt = attempt.max(1);
        if hint == Retry::Never || (hint != Retry::Outage && attempt >= self.attempts_max) {
            return Decision::GiveUp;
        }
        let grown =
            self.delay_initial.saturating_mul(2u32.saturating_pow(attempt - 1)).min(self.delay_max);
        let wait = grown.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0));
        match hint {
            Retry::After(asked) => Decision::RetryAfter(asked.max(wait)),
            Retry::Later | Retry::Outage | Retry::Never => Decision::RetryAfter(wait),
        }
    }
}

impl Default for RetryPolicy {
    /// Eight tries over about half a minute: 100 ms doubling to 30 s.
    fn default() -> Self {
        Self::exponential(Duration::from_millis(100), Duration::from_secs(30))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn waits_double_up_to_the_cap_and_end() {
        let policy = RetryPolicy::exponential(100 * MS, 300 * MS).attempts(4);
        let waits: Vec<_> = (1..=4).map(|n| policy.decide(n, Retry::Later, 1.0)).collect();
        assert_eq!(
            waits,
            [
                Decision::RetryAfter(100 * MS),
                Decision::RetryAfter(200 * MS),
                Decision::RetryAfter(300 * MS),
                Decision::GiveUp
            ]
        );
        assert_eq!(policy.decide(1, Retry::Later, 0.0), Decision::RetryAfter(50 * MS));
    }

    #[test]
    fn hints_overrule_the_policy() {
        let policy = RetryPolicy::exponential(100 * MS, 300 * MS).attempts(2);
        assert_eq!(policy.decide(1, Retry::Never, 1.0), Decision::GiveUp);
        assert_eq!(policy.decide(1, Retry::After(900 * MS), 1.0), Decision::RetryAfter(900 * MS));
        assert_eq!(policy.decide(99, Retry::Outage, 1.0), Decision::RetryAfter(300 * MS));
        assert_eq!(policy.decide(2, Retry::After(MS), 1.0), Decision::GiveUp);
    }
}
