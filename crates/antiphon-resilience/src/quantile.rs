//! How long most calls take, kept up to date without a lock and without memory per call.
//!
//! A histogram whose buckets are an eighth of a power of two wide (the layout of HdrHistogram, with
//! three bits), so what it says is at most an eighth too long. It forgets half of what it has seen
//! each time it is full, so it follows a target that changes.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use crate::window::micros;

/// Buckets per power of two, as a power of two.
const FINENESS: u32 = 3;
/// The longest time that is told apart from longer ones: 2²⁷ microseconds are two minutes.
const POWER_MAX: u32 = 26;
const BUCKETS: usize = ((POWER_MAX - FINENESS + 2) << FINENESS) as usize;
/// After so many samples the quantile is worked out anew.
const REFRESH: u64 = 64;
/// With so many samples it is full.
const SAMPLES_MAX: u64 = 4_096;

/// One quantile of times.
#[derive(Debug)]
pub(crate) struct Quantile {
    quantile: f64,
    counts: [AtomicU32; BUCKETS],
    seen: AtomicU64,
    /// What was worked out last, in microseconds.
    value: AtomicU64,
    refreshing: Mutex<()>,
}

impl Quantile {
    /// The time that this part of all samples does not exceed, in `0.0..=1.0`.
    pub(crate) fn new(quantile: f64) -> Self {
        Self {
            quantile: quantile.clamp(0.0, 1.0),
            counts: [const { AtomicU32::new(0) }; BUCKETS],
            seen: AtomicU64::new(0),
            value: AtomicU64::new(0),
            refreshing: Mutex::new(()),
        }
    }

    pub(crate) fn record(&self, time: Duration) {
        self.counts[bucket(micros(time))].fetch_add(1, Relaxed);
        let seen = self.seen.fetch_add(1, Relaxed) + 1;
        if seen.is_multiple_of(REFRESH) {
            self.refresh();
        }
    }

    /// How many samples there were in all.
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Relaxed)
    }

    /// The quantile of what was not forgotten, never too short; zero before [`REFRESH`] samples.
    pub(crate) fn value(&self) -> Duration {
        Duration::from_micros(self.value.load(Relaxed))
    }

    /// Another thread that is doing so already is enough.
    fn refresh(&self) {
        let Some(_refreshing) = self.refreshing.try_lock() else {
            return;
        };
        let counts = || self.counts.iter().map(|count| u64::from(count.load(Relaxed)));
        let samples: u64 = counts().sum();
        let wanted = self.quantile * samples as f64;
        let mut below = 0;
        let found = counts().position(|count| {
            below += count;
            below as f64 >= wanted
        });
        if let Some(found) = found {
            self.value.store(end(found), Relaxed);
        }
        if samples >= SAMPLES_MAX {
            for count in &self.counts {
                // Rounded up, or single samples would stay for ever.
                count.fetch_sub(count.load(Relaxed).div_ceil(2), Relaxed);
            }
        }
    }
}

/// The bucket of a time: exact below 8, and from there on its highest bit and the three after it.
fn bucket(micros: u64) -> usize {
    let power = micros.checked_ilog2().unwrap_or(0);
    if power < FINENESS {
        return usize::try_from(micros).unwrap_or(0);
    }
    if power > POWER_MAX {
        return BUCKETS - 1;
    }
    let fine = micros >> (power - FINENESS) & ((1 << FINENESS) - 1);
    ((power - FINENESS + 1) << FINENESS) as usize + usize::try_from(fine).unwrap_or(0)
}

/// The first time after the bucket, in microseconds.
fn end(bucket: usize) -> u64 {
    let bucket = bucket as u64 + 1;
    let per_power = 1 << FINENESS;
    if bucket < per_power {
        return bucket;
    }
    (bucket % per_power + per_power) << (bucket / per_power - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gaps_and_are_an_eighth_wide() {
        assert_eq!(bucket(0), 0);
        for one in 0..BUCKETS - 1 {
            let (first, after) = (if one == 0 { 0 } else { end(one - 1) }, end(one));
            assert_eq!((bucket(first), bucket(after - 1), bucket(after)), (one, one, one + 1));
            assert!(first < 8 || (after - first) * 8 <= first, "{first} {after}");
        }
        assert_eq!(end(BUCKETS - 1), 1 << (POWER_MAX + 1));
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_quantile_is_right_to_an_eighth_and_never_too_short() {
        let mut random = fastrand::Rng::with_seed(1);
        let quantile = Quantile::new(0.95);
        for _ in 0..4_000 {
            quantile.record(Duration::from_micros(random.u64(0..100_000)));
        }
        let value = quantile.value();
        let range = Duration::from_millis(94)..Duration::from_millis(108);
        assert!(range.contains(&value), "{value:?}");
        assert_eq!(quantile.seen(), 4_000);
    }

    #[test]
    fn what_was_is_forgotten_when_the_target_changes() {
        let quantile = Quantile::new(0.95);
        let tell = |millis, times: u32| {
            (0..times).for_each(|_| quantile.record(Duration::from_millis(millis)));
            quantile.value().as_millis()
        };
        let near = |value: u128, millis: u128| (millis..=millis * 9 / 8).contains(&value);
        assert!(near(tell(10, 100_000), 10));
        assert!(near(tell(100, 1_000), 100));
        assert!(!near(tell(10, 1_000), 10), "not at once");
        assert!(near(tell(10, 20_000), 10));
    }

    #[test]
    fn single_samples_do_not_stay_for_ever() {
        let quantile = Quantile::new(0.99);
        for power in 14..=POWER_MAX {
            for eighth in 0..8 {
                quantile.record(Duration::from_micros((8 + eighth) << (power - FINENESS)));
            }
        }
        (0..100_000).for_each(|_| quantile.record(Duration::from_millis(10)));
        assert!(quantile.value() < Duration::from_millis(12), "{:?}", quantile.value());
    }

    #[test]
    fn threads_lose_no_sample() {
        let quantile = Quantile::new(0.5);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..900).for_each(|_| quantile.record(Duration::from_millis(7))));
            }
        });
        let counted: u32 = quantile.counts.iter().map(|count| count.load(Relaxed)).sum();
        assert_eq!((counted, quantile.seen()), (3_600, 3_600));
    }
}
