//! The decision: what may be done with an entry of this age.
//!
//! An entry is fresh for its time, then stale. The two windows of RFC 5861 lie over each other behind
//! the end of that time: in the first an old value is served while a new one is loaded, in the second
//! only when loading fails. After a failed load the next one waits, so that a source in trouble is not
//! asked at the rate of the readers.

use std::time::Duration;

use tokio::time::Instant;

use crate::settings::CacheSettings;

/// How far the time of an entry is moved at most, as a share of it.
const JITTER: f64 = 0.1;

/// When an entry was or will be what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    /// Before this moment it is fresh.
    pub(crate) fresh_until: Instant,
    /// Before this moment it is not loaded anew. Later than [`Self::fresh_until`] after a failed load.
    pub(crate) load_from: Instant,
}

/// How long entries are served after their time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    pub(crate) while_revalidate: Duration,
    pub(crate) if_error: Duration,
}

/// What to do with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Serve it.
    Fresh,
    /// Serve it, and leave the source alone for a while.
    Stale,
    /// Serve it, and load a new one meanwhile.
    Revalidate,
    /// Load a new one, and serve this one if that fails.
    Fallback,
    /// It is as if it were not there.
    Over,
}

impl Times {
    /// Fresh from `now` for a time.
    pub(crate) fn fresh_for(duration: Duration, now: Instant) -> Self {
        let fresh_until = now + duration;
        Self { fresh_until, load_from: fresh_until }
    }

    /// Not fresh since a time.
    pub(crate) fn stale_for(duration: Duration, now: Instant) -> Self {
        // Only a machine that was just switched on knows no moment that long ago.
        let fresh_until = now.checked_sub(duration).unwrap_or(now);
        Self { fresh_until, load_from: fresh_until }
    }

    /// As it was, after a load that failed.
    pub(crate) fn pausing(self, pause: Duration, now: Instant) -> Self {
        Self { load_from: now + pause, ..self }
    }
}

impl Windows {
    pub(crate) fn of(settings: &CacheSettings) -> Self {
        Self {
            while_revalidate: settings.stale_while_revalidate.0,
            if_error: settings.stale_if_error.0,
        }
    }

    /// What to do with an entry; one that says that there is no value has no windows, since nobody
    /// is helped by an old nothing.
    pub(crate) fn judge(&self, times: Times, has_value: bool, now: Instant) -> Verdict {
        if now < times.fresh_until {
            return Verdict::Fresh;
        }
        let age = now - times.fresh_until;
        if !has_value || age >= self.while_revalidate.max(self.if_error) {
            Verdict::Over
        } else if now < times.load_from {
            Verdict::Stale
        } else if age < self.while_revalidate {
            Verdict::Revalidate
        } else {
            Verdict::Fallback
        }
    }
}

/// A time with jitter; `random` is in `0.0..1.0`.
pub(crate) fn jittered(time: Duration, random: f64) -> Duration {
    time.mul_f64(1.0 - JITTER + 2.0 * JITTER * random)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn age_decides_what_an_entry_is_good_for() {
        let now = Instant::now() + 1_000 * SECOND;
        let windows = Windows { while_revalidate: 5 * SECOND, if_error: 20 * SECOND };
        let stale = |seconds: u32| Times::stale_for(seconds * SECOND, now);
        let cases = [
            ("new", Times::fresh_for(SECOND, now), true, Verdict::Fresh),
            ("new nothing", Times::fresh_for(SECOND, now), false, Verdict::Fresh),
            ("old nothing", stale(0), false, Verdict::Over),
            ("its time has just ended", stale(0), true, Verdict::Revalidate),
            ("near the end of the first window", stale(4), true, Verdict::Revalidate),
            ("behind the first window", stale(5), true, Verdict::Fallback),
            ("behind both", stale(20), true, Verdict::Over),
            ("a load failed just now", stale(3).pausing(SECOND, now), true, Verdict::Stale),
            ("the same, later", stale(9).pausing(SECOND, now), true, Verdict::Stale),
            ("a pause does not prolong", stale(20).pausing(SECOND, now), true, Verdict::Over),
        ];
        for (name, times, has_value, expected) in cases {
            assert_eq!(windows.judge(times, has_value, now), expected, "{name}");
        }
    }

    #[test]
    fn jitter_moves_a_time_by_a_tenth() {
        for (random, millis) in [(0.0, 900), (0.5, 1_000), (1.0, 1_100)] {
            let moved = jittered(SECOND, random).as_secs_f64() * 1_000.0;
            assert!((moved - f64::from(millis)).abs() < 0.001, "{random}: {moved}");
        }
    }
}
