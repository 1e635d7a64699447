//! What a failure means: try again here, at the broker, in the store, or never.
//!
//! The rungs, in order: a short wait here (at most three tries and two seconds, the delivery stays
//! unsettled), the broker's own delay where it is safe, the durable parking store, and the dead
//! letters. Where a rung is missing the delivery waits here for longer: it stays unsettled, so it is
//! not lost, and it keeps its credit, so what waits is bounded.

use std::time::Duration;

use antiphon_core::retry::Decision;
use antiphon_core::{Retry, RetryPolicy};

use crate::fail::Fail;
use crate::port::DeadReason;

/// How many tries a delivery gets before it goes back to the broker.
const TRIES_HERE_MAX: u32 = 3;
/// How long a delivery may take for them.
const TIME_HERE_MAX: Duration = Duration::from_secs(2);
/// The longest text of an error that a dead letter keeps, in bytes.
const ERROR_BYTES_MAX: usize = 2_048;

/// What was tried with one delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tries {
    /// Attempts before this delivery.
    pub(crate) before: u32,
    /// Attempts made with it that count.
    pub(crate) counted: u32,
    /// Attempts that failed in a row because of an outage; they do not count.
    pub(crate) outages: u32,
}

impl Tries {
    /// Those of a delivery that arrives as this attempt.
    pub(crate) fn arriving(attempt: u32) -> Self {
        Self { before: attempt.saturating_sub(1), ..Self::default() }
    }

    /// The number of the attempt that comes next or is being made, from 1.
    pub(crate) fn attempt(self) -> u32 {
        self.before.saturating_add(self.counted).saturating_add(1)
    }

    /// With the outcome of one more try.
    pub(crate) fn failed(self, hint: Retry) -> Self {
        if hint == Retry::Outage {
            Self { outages: self.outages.saturating_add(1), ..self }
        } else {
            Self { counted: self.counted.saturating_add(1), outages: 0, ..self }
        }
    }
}

/// What to do with a delivery that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Keep it and try again after this much time.
    Here(Duration),
    /// Let the broker deliver it again after this much time.
    Broker(Duration),
    /// Put it into the parking store for this much time.
    Park(Duration),
    /// Give it back at once: the group is draining and nothing else can take it.
    Release,
    /// Stop trying.
    Dead(DeadReason),
}

/// What besides the failure itself counts for the decision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Circumstances {
    /// For how long the delivery has been tried here.
    pub(crate) elapsed: Duration,
    /// For how long the group has met nothing but an outage.
    pub(crate) outage: Duration,
    /// Whether the group is draining.
    pub(crate) draining: bool,
    /// Places the wait, in `0.0..=1.0`.
    pub(crate) jitter: f64,
}

/// The rungs that a group has.
#[derive(Clone, Debug)]
pub(crate) struct Ladder {
    /// The consumer's policy.
    pub(crate) policy: RetryPolicy,
    /// The longest wait at the broker; zero where the broker would break the order of keys.
    pub(crate) broker_max: Duration,
    /// Whether there is a parking store.
    pub(crate) parking: bool,
}

impl Ladder {
    /// Decides. `tries` includes the failed one.
    pub(crate) fn decide(&self, tries: Tries, fail: &Fail, now: Circumstances) -> Verdict {
        let hint = fail.hint();
        let made = tries.before.saturating_add(tries.counted);
        let attempt = if hint == Retry::Outage { tries.outages } else { made };
        let wait = match self.policy.decide(attempt, hint, now.jitter) {
            Decision::GiveUp => return Verdict::Dead(reason(hint, fail, made)),
            // The longer an outage lasts the less often it is asked whether it is over.
            Decision::RetryAfter(wait) if hint == Retry::Outage => {
                let lasting = now.outage.min(self.policy.delay_max);
                wait.max(lasting.mul_f64(0.5 + 0.5 * now.jitter))
            }
            Decision::RetryAfter(wait) => wait,
        };
        let tries_here = tries.counted.saturating_add(tries.outages);
        let in_time = now.elapsed.saturating_add(wait) <= TIME_HERE_MAX;
        if tries_here < TRIES_HERE_MAX && in_time && !now.draining {
            Verdict::Here(wait)
        } else if wait <= self.broker_max && !self.broker_max.is_zero() {
            Verdict::Broker(wait)
        } else if self.parking {
            Verdict::Park(wait)
        } else if now.draining {
            Verdict::Release
        } else {
            Verdict::Here(wait)
        }
    }
}

fn reason(hint: Retry, fail: &Fail, attempts: u32) -> DeadReason {
    let usual = if hint == Retry::Never { "permanent" } else { "attempts" };
    let mut error = fail.describe();
    if error.len() > ERROR_BYTES_MAX {
        let end = (0..=ERROR_BYTES_MAX).rev().find(|at| error.is_char_boundary(*at));
        error.truncate(end.unwrap_or(0));
    }
    DeadReason { code: fail.code().unwrap_or(usual), error, attempts }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const DAY: Duration = Duration::from_secs(86_400);

    fn ladder(broker_max: Duration, parking: bool) -> Ladder {
        let policy = RetryPolicy::exponential(100 * MS, 30_000 * MS).attempts(6);
        Ladder { policy, broker_max, parking }
    }

    const CALM: Circumstances = Circumstances {
        elapsed: Duration::ZERO,
        outage: Duration::ZERO,
        draining: false,
        jitter: 1.0,
    };

    fn after(attempts: u32) -> Tries {
        Tries { before: 0, counted: attempts, outages: 0 }
    }

    #[test]
    fn the_first_tries_are_made_here_then_the_broker_waits() {
        let ladder = ladder(DAY, false);
        let fail = Fail::retry("busy");
        let verdict =
            |n, elapsed| ladder.decide(after(n), &fail, Circumstances { elapsed, ..CALM });
        assert_eq!(verdict(1, Duration::ZERO), Verdict::Here(100 * MS));
        assert_eq!(verdict(2, 100 * MS), Verdict::Here(200 * MS));
        assert_eq!(verdict(3, 300 * MS), Verdict::Broker(400 * MS));
        assert_eq!(verdict(2, 1_900 * MS), Verdict::Broker(200 * MS));
        let Verdict::Dead(reason) = verdict(6, Duration::ZERO) else { panic!("not dead") };
        assert_eq!((reason.code, reason.attempts), ("attempts", 6));
    }

    #[test]
    fn a_missing_rung_is_stepped_over() {
        let fail = Fail::retry_after(DAY, "come back tomorrow");
        let decide = |ladder: Ladder, draining| {
            ladder.decide(after(1), &fail, Circumstances { draining, ..CALM })
        };
        assert_eq!(decide(ladder(DAY, true), false), Verdict::Broker(DAY));
        assert_eq!(decide(ladder(30_000 * MS, true), false), Verdict::Park(DAY));
        assert_eq!(decide(ladder(Duration::ZERO, false), false), Verdict::Here(DAY));
        assert_eq!(decide(ladder(Duration::ZERO, false), true), Verdict::Release);
    }

    #[test]
    fn a_draining_group_does_not_wait_here() {
        let verdict = ladder(DAY, false).decide(
            after(1),
            &Fail::retry("x"),
            Circumstances { draining: true, ..CALM },
        );
        assert_eq!(verdict, Verdict::Broker(100 * MS));
    }

    #[test]
    fn an_outage_never_ends_a_message_and_is_not_counted() {
        let mut tries = Tries::arriving(6);
        let fail = Fail::defer("database away");
        for _ in 0..1_000 {
            tries = tries.failed(fail.hint());
            let verdict = ladder(DAY, false).decide(
                tries,
                &fail,
                Circumstances { elapsed: 10_000 * MS, ..CALM },
            );
            assert!(matches!(verdict, Verdict::Broker(_)), "{verdict:?}");
        }
        assert_eq!((tries.attempt(), tries.counted), (6, 0));
    }

    #[test]
    fn the_longer_an_outage_lasts_the_longer_are_the_waits() {
        let tries = Tries::arriving(1).failed(Retry::Outage);
        let wait = |seconds, jitter| {
            let outage = Duration::from_secs(seconds);
            let now = Circumstances { outage, jitter, ..CALM };
            match ladder(DAY, false).decide(tries, &Fail::defer("away"), now) {
                Verdict::Here(wait) | Verdict::Broker(wait) => wait,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(wait(0, 1.0), 100 * MS);
        assert_eq!(wait(8, 1.0), 8_000 * MS);
        assert_eq!(wait(8, 0.0), 4_000 * MS);
        assert_eq!(wait(900, 1.0), 30_000 * MS);
    }

    #[test]
    fn a_permanent_failure_is_dead_at_once_under_its_own_code() {
        let fail = Fail::permanent("ü".repeat(3_000)).with_code("decode");
        let verdict = ladder(DAY, true).decide(after(1), &fail, CALM);
        let Verdict::Dead(reason) = verdict else { panic!("not dead") };
        assert_eq!(reason.code, "decode");
        assert_eq!(reason.error.len(), ERROR_BYTES_MAX);
    }
}
