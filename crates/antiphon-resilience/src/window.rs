//! Counts over the last stretch of time, without a lock.
//!
//! A window is a ring of buckets. Each bucket is one atomic word that holds the number of the stretch
//! it counts and the count itself, so a bucket is emptied and used again by the one operation that
//! counts into it first. A count that races with that may land in the next bucket: nothing is lost.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// How many buckets a window has.
const BUCKETS: u32 = 10;

/// A count over ten buckets of time, the current one included.
#[derive(Debug)]
pub(crate) struct Window {
    origin: Instant,
    bucket_micros: u64,
    /// The number of the stretch in the upper half, the count in the lower half.
    buckets: [AtomicU64; BUCKETS as usize],
}

impl Window {
    /// An empty window of this length, at least ten microseconds.
    pub(crate) fn new(length: Duration, now: Instant) -> Self {
        let bucket_micros = micros(length / BUCKETS).max(1);
        Self { origin: now, bucket_micros, buckets: Default::default() }
    }

    /// Counts one more.
    pub(crate) fn count(&self, now: Instant) {
        let stretch = self.stretch(now);
        let bucket = self.bucket(stretch);
        let mut seen = bucket.load(Relaxed);
        loop {
            let counted_for = of_stretch(seen);
            if counted_for == stretch {
                bucket.fetch_add(1, Relaxed);
                return;
            }
            // Another thread's clock is a whole window ahead: what is counted here is over.
            if counted_for > stretch {
                return;
            }
            match bucket.compare_exchange_weak(seen, word(stretch, 1), Relaxed, Relaxed) {
                Ok(_) => return,
                Err(now_there) => seen = now_there,
            }
        }
    }

    /// Counts one more if that makes no more than `max` in the window; `false` if it does.
    pub(crate) fn count_up_to(&self, max: f64, now: Instant) -> bool {
        let stretch = self.stretch(now);
        let bucket = self.bucket(stretch);
        loop {
            let seen = bucket.load(Relaxed);
            if of_stretch(seen) > stretch || self.sum(now) as f64 + 1.0 > max {
                return false;
            }
            let in_bucket = if of_stretch(seen) == stretch { of_count(seen) } else { 0 };
            let next = word(stretch, in_bucket.saturating_add(1));
            // Whoever counted meanwhile changed the bucket, so no two take the same last place.
            if bucket.compare_exchange(seen, next, Relaxed, Relaxed).is_ok() {
                return true;
            }
        }
    }

    /// What was counted in the window that ends now.
    pub(crate) fn sum(&self, now: Instant) -> u64 {
        let stretch = self.stretch(now);
        let oldest = stretch.saturating_sub(BUCKETS - 1);
        let words = self.buckets.iter().map(|bucket| bucket.load(Relaxed));
        let within = words.filter(|word| (oldest..=stretch).contains(&of_stretch(*word)));
        within.map(|word| u64::from(of_count(word))).sum()
    }

    /// The number of the stretch that `now` is in. Four thousand million stretches are decades.
    fn stretch(&self, now: Instant) -> u32 {
        let since = micros(now.saturating_duration_since(self.origin));
        u32::try_from(since / self.bucket_micros).unwrap_or(u32::MAX)
    }

    fn bucket(&self, stretch: u32) -> &AtomicU64 {
        &self.buckets[(stretch % BUCKETS) as usize]
    }
}

/// A time in microseconds, as much as fits.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn word(stretch: u32, count: u32) -> u64 {
    u64::from(stretch) << 32 | u64::from(count)
}

fn of_stretch(word: u64) -> u32 {
    (word >> 32) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half of the word is the count")]
fn of_count(word: u64) -> u32 {
    word as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_older_than_the_window_is_forgotten_bucket_by_bucket() {
        let start = Instant::now();
        let window = Window::new(10 * SECOND, start);
        for second in 0..10 {
            window.count(start + second * SECOND);
        }
        assert_eq!(window.sum(start + 9 * SECOND), 10);
        assert_eq!(window.sum(start + 10 * SECOND), 9);
        window.count(start + 10 * SECOND);
        assert_eq!(window.sum(start + 10 * SECOND), 10);
        assert_eq!(window.sum(start + 19 * SECOND), 1);
        assert_eq!(window.sum(start + 500 * SECOND), 0);
    }

    #[test]
    fn any_course_of_counting_agrees_with_a_list_of_all_counts() {
        let mut random = fastrand::Rng::with_seed(2);
        let start = Instant::now();
        let window = Window::new(10 * SECOND, start);
        let mut counted: Vec<u64> = Vec::new();
        let mut at = Duration::ZERO;
        for _ in 0..50_000 {
            let pause = if random.u8(..) == 0 { 30_000 } else { 90 };
            at += Duration::from_millis(random.u64(0..pause));
            let now = at.as_secs();
            let within = |counted: &[u64]| {
                counted.iter().rev().take_while(|second| **second + 10 > now).count() as u64
            };
            let max = random.u64(0..400);
            if random.bool() {
                window.count(start + at);
                counted.push(now);
            } else if window.count_up_to(max as f64, start + at) {
                assert!(within(&counted) < max);
                counted.push(now);
            } else {
                assert!(within(&counted) >= max);
            }
            assert_eq!(window.sum(start + at), within(&counted));
        }
    }

    #[test]
    fn a_count_with_an_old_time_does_not_destroy_a_new_bucket() {
        let start = Instant::now();
        let window = Window::new(10 * SECOND, start);
        window.count(start + 20 * SECOND);
        window.count(start);
        assert!(!window.count_up_to(100.0, start));
        assert_eq!(window.sum(start + 20 * SECOND), 1);
    }

    #[test]
    fn threads_never_count_past_the_maximum() {
        let start = Instant::now();
        let window = Window::new(10 * SECOND, start);
        let together = std::sync::Barrier::new(4);
        let counted: usize = std::thread::scope(|scope| {
            let work = || {
                together.wait();
                (0..100_000).filter(|_| window.count_up_to(70_000.0, start)).count()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(counted, 70_000);
        assert_eq!(window.sum(start), 70_000);
    }

    #[test]
    fn threads_that_turn_the_ring_lose_no_count() {
        let start = Instant::now();
        let window = Window::new(10 * SECOND, start);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|n| window.count(start + n / 1_000 * SECOND)));
            }
        });
        assert_eq!(window.sum(start + 9 * SECOND), 40_000);
    }
}
