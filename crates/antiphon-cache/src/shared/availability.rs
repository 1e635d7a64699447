//! The decision: whether the shared level is asked at all.
//!
//! Each question to a level that does not answer costs the time that the cache waits for it. After a
//! few in a row the level counts as away and is asked again only now and then, by one at a time.

use std::time::Duration;

use tokio::time::Instant;

/// How many failures in a row are its absence. One alone may be a slow answer.
const FAILURES_MAX: u32 = 3;
/// The first wait between attempts; each further one is twice as long.
const WAIT_MIN: Duration = Duration::from_millis(100);
/// The longest.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// What is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Availability {
    failures: u32,
    /// While it counts as away: not before this moment.
    ask_from: Instant,
}

impl Availability {
    pub(super) fn new(now: Instant) -> Self {
        Self { failures: 0, ask_from: now }
    }

    /// Whether to ask it now. Whoever is let through while it is away is the only one for a while.
    pub(super) fn ask(&mut self, now: Instant) -> bool {
        if self.failures < FAILURES_MAX {
            return true;
        }
        let asked = now >= self.ask_from;
        if asked {
            self.ask_from = now + self.wait();
        }
        asked
    }

    /// It answered.
    pub(super) fn answered(&mut self) {
        self.failures = 0;
    }

    /// It did not, or with an error. Yields whether it counts as away from now on.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.ask_from = now + self.wait();
        self.failures == FAILURES_MAX
    }

    fn wait(&self) -> Duration {
        let doublings = self.failures.saturating_sub(FAILURES_MAX).min(16);
        WAIT_MIN.saturating_mul(1 << doublings).min(WAIT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_asked_less_and_less() {
        let start = Instant::now();
        let mut level = Availability::new(start);
        assert!(!level.failed(start) && !level.failed(start), "it may be slow");
        assert!(level.ask(start));
        assert!(level.failed(start), "it is away");
        assert!(!level.failed(start), "which is said once");
        let mut asked = Vec::new();
        for millis in 0..10_000 {
            let now = start + Duration::from_millis(millis);
            if level.ask(now) {
                asked.push(millis);
                assert!(!level.ask(now), "one at a time");
                level.failed(now);
            }
        }
        assert_eq!(asked, [200, 600, 1_400, 3_000, 5_000, 7_000, 9_000]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_answer_is_enough() {
        let now = Instant::now();
        let mut level = Availability::new(now);
        (0..9).for_each(|_| {
            level.failed(now);
        });
        level.answered();
        assert!(level.ask(now) && level.ask(now));
    }
}
