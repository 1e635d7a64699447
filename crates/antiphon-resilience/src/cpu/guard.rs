//! How many calls of one method may be in progress while the process is busy.
//!
//! By Little's law a method is worked on in as many calls at once as its highest rate times its
//! shortest time; more only wait. This is the idea of BBR (Cardwell and others, 2016) as service
//! frameworks such as Kratos use it, with three differences. Times are in microseconds: in whole
//! milliseconds anything faster than one is computed wrong. A short queue is allowed, without which
//! a processor is idle between two calls that do not come evenly; how short, is CoDel's target (RFC
//! 8289). And while calls are refused, a quarter of the calls is let in for a moment now and then,
//! as BBR does to a network: else the queue itself would soon be part of the shortest time that
//! anybody remembers, and grow.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use antiphon_core::Priority;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::CpuLoad;
use crate::window::micros;

/// How often a method's passing calls are looked at.
const BUCKET: Duration = Duration::from_millis(100);
/// For how long what a method did at its best is remembered.
const MEMORY: Duration = Duration::from_secs(10);
/// How long calls may wait for each other. Nobody minds so little, and the fastest methods would
/// refuse calls that wait for less than it takes to try again.
const QUEUE: Duration = Duration::from_millis(5);
/// The calls that may wait for each other however slow they are.
const QUEUE_CALLS_MIN: f64 = 8.0;
/// How often the shortest time is looked for while calls are refused.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// The part of the calls that is let in then.
const PROBE_DIVISOR: u32 = 4;

/// How many calls of one method may be in progress while the process is busy.
///
/// Shared between threads by reference; asked without a lock.
#[derive(Debug)]
pub struct CpuGuard {
    origin: Instant,
    calls: AtomicU32,
    micros: AtomicU64,
    /// Whether any call was refused since the last decision.
    refused: AtomicBool,
    /// When the open bucket closes, in microseconds after the origin.
    closes: AtomicU64,
    closed: Mutex<Closed>,
    /// What may be in progress; all before anything was seen.
    allowed: AtomicU32,
}

/// The last ten seconds in buckets, a ring.
#[derive(Debug)]
struct Closed {
    ring: [Bucket; (MEMORY.as_millis() / BUCKET.as_millis()) as usize],
    next: usize,
    opened: u64,
    /// When the last look for the shortest time was over, or will be.
    probe_ends: u64,
}

/// The calls that ended in one stretch of time, if any did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bucket {
    /// When it ended, in microseconds after any origin.
    pub ended: u64,
    /// Calls per second.
    pub per_second: f64,
    /// How long they took on average, in microseconds.
    pub micros_mean: f64,
}

/// The calls that may be in progress after `buckets`: the highest rate times the shortest time, and
/// the queue. `None` when nothing is known from after `oldest`.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "neither rates nor times are negative, and what is too large for u32 allows everything"
)]
pub fn allowed(buckets: &[Bucket], oldest: u64) -> Option<u32> {
    let known = || buckets.iter().filter(|one| one.ended > oldest && one.per_second > 0.0);
    let shortest = known().map(|one| one.micros_mean).reduce(f64::min)?;
    let highest = known().map(|one| one.per_second).fold(0.0, f64::max);
    let worked_on = highest * shortest / 1_000_000.0;
    let queue = (highest * QUEUE.as_secs_f64()).max(QUEUE_CALLS_MIN);
    Some((worked_on + queue).ceil() as u32)
}

impl CpuGuard {
    /// A method of which nothing was seen yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let ring = [Bucket::default(); _];
        Self {
            origin: now,
            calls: AtomicU32::new(0),
            micros: AtomicU64::new(0),
            refused: AtomicBool::new(false),
            closes: AtomicU64::new(micros(BUCKET)),
            closed: Mutex::new(Closed { ring, next: 0, opened: 0, probe_ends: 0 }),
            allowed: AtomicU32::new(u32::MAX),
        }
    }

    /// Whether one more call may be let in, beside `in_flight` of the method. A critical one always.
    #[must_use]
    pub fn admits(&self, load: &CpuLoad, priority: Priority, in_flight: u32, now: Instant) -> bool {
        let fits = in_flight < self.places(load, priority, now);
        if !fits {
            self.refused.store(true, Relaxed);
        }
        fits
    }

    /// How many calls may be in progress, this one included, when one of this priority is let in:
    /// any number while the process is not busy.
    #[must_use]
    pub fn places(&self, load: &CpuLoad, priority: Priority, now: Instant) -> u32 {
        if priority == Priority::Critical || !load.is_busy(now) {
            return u32::MAX;
        }
        priority.places(self.allowed())
    }

    /// A call that was let in and worked on to its end has ended at `now`, after `took`.
    pub fn record(&self, took: Duration, now: Instant) {
        let now = micros(now.saturating_duration_since(self.origin));
        if now >= self.closes.load(Relaxed) {
            self.close(now);
        }
        self.calls.fetch_add(1, Relaxed);
        self.micros.fetch_add(micros(took), Relaxed);
    }

    /// The calls in progress that are allowed while the process is busy.
    #[must_use]
    pub fn allowed(&self) -> u32 {
        self.allowed.load(Relaxed)
    }

    /// Ends the open bucket and learns from it. Another thread that is doing so is enough.
    fn close(&self, now: u64) {
        let Some(mut closed) = self.closed.try_lock() else {
            return;
        };
        let length = now.saturating_sub(closed.opened);
        if length < micros(BUCKET) {
            return;
        }
        // A call that ends in this moment may be counted without its time; averages do not mind.
        let calls = self.calls.swap(0, Relaxed);
        let took = self.micros.swap(0, Relaxed);
        let refused = self.refused.swap(false, Relaxed);
        // After a long pause the calls in the bucket are those from before it.
        let bucket = (calls > 0 && length < micros(MEMORY)).then(|| {
            let calls = f64::from(calls);
            Bucket {
                ended: now,
                per_second: calls * 1_000_000.0 / length as f64,
                micros_mean: took as f64 / calls,
            }
        });
        closed.opened = now;
        self.allowed.store(closed.step(bucket, refused, now), Relaxed);
        self.closes.store(now.saturating_add(micros(BUCKET)), Relaxed);
    }
}

impl Closed {
    /// What is allowed after one more bucket, in which calls were refused or not.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a time is not negative, and one too long for u64 is as good as any that fits"
    )]
    fn step(&mut self, bucket: Option<Bucket>, refused: bool, now: u64) -> u32 {
        if let Some(bucket) = bucket {
            let place = self.next;
            self.ring[place] = bucket;
            self.next = (place + 1) % self.ring.len();
        }
        let known = allowed(&self.ring, now.saturating_sub(micros(MEMORY)));
        let Some(allowed) = known else {
            return u32::MAX;
        };
        if refused && now >= self.probe_ends.saturating_add(micros(PROBE_INTERVAL)) {
            // Those that are in progress have to end before the others can be fast.
            let took = bucket.map_or(0.0, |bucket| bucket.micros_mean) as u64;
            self.probe_ends = now.saturating_add(micros(BUCKET)).saturating_add(took);
        }
        if now < self.probe_ends { allowed.div_ceil(PROBE_DIVISOR) } else { allowed }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CpuSettings, CpuUse};
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_best_rate_times_the_best_time_and_a_short_queue_may_be_in_progress() {
        let bucket = |ended, per_second, micros_mean| Bucket { ended, per_second, micros_mean };
        assert_eq!(allowed(&[], 0), None);
        assert_eq!(allowed(&[Bucket::default()], 0), None);
        assert_eq!(allowed(&[bucket(1, 400.0, 10_000.0)], 0), Some(4 + 8));
        let two = [bucket(1, 400.0, 90_000.0), bucket(2, 50.0, 10_000.0)];
        assert_eq!(allowed(&two, 0), Some(4 + 8));
        assert_eq!(allowed(&two, 1), Some(1 + 8));
        // A method that takes 50 µs: in milliseconds it would be none, or twenty times as many.
        assert_eq!(allowed(&[bucket(1, 100_000.0, 50.0)], 0), Some(5 + 500));
        assert_eq!(allowed(&[bucket(1, 1e12, 1e12)], 0), Some(u32::MAX));
    }

    fn busy(now: Instant) -> CpuLoad {
        let before = CpuUse { cores: 1.0, ..CpuUse::default() };
        let load = CpuLoad::new(CpuSettings::default(), before, now - MS);
        load.note(CpuUse { used: Duration::from_secs(100_000), ..before }, now);
        assert!(load.is_busy(now));
        load
    }

    #[test]
    fn the_guard_lets_everything_in_while_the_process_is_not_busy() {
        let start = Instant::now();
        let guard = CpuGuard::new(start);
        // A call each millisecond that takes 5 ms: five at once, and eight that wait.
        (0..1_000).for_each(|n| guard.record(5 * MS, start + n * MS));
        let now = start + Duration::from_secs(1);
        assert_eq!(guard.allowed(), 13);
        let idle = CpuLoad::new(CpuSettings::default(), CpuUse::default(), start);
        assert!(guard.admits(&idle, Priority::Probe, 1_000, now));
        let load = busy(now);
        let places = |priority| (0..50).filter(|n| guard.admits(&load, priority, *n, now)).count();
        let all = [Priority::Probe, Priority::Sheddable, Priority::Default, Priority::Critical];
        assert_eq!(all.map(places), [6, 9, 13, 50]);
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let start = Instant::now();
        let guard = CpuGuard::new(start);
        (0..1_000).for_each(|n| guard.record(5 * MS, start + n * MS));
        assert_eq!(guard.allowed(), 13);
        let later = start + Duration::from_secs(12);
        (0..1_000).for_each(|n| guard.record(20 * MS, later + n * MS));
        assert_eq!(guard.allowed(), 28);
    }

    /// A processor that works on one call after the other, for 1 ms each, and is asked for three each
    /// millisecond: how many are in progress after so many milliseconds.
    fn overload(guard: &CpuGuard, load: impl Fn(Instant) -> CpuLoad, millis: u32) -> (u32, u32) {
        let start = Instant::now();
        let (mut queue, mut ended) = (std::collections::VecDeque::new(), 0);
        for n in 0..millis {
            let now = start + n * MS;
            let load = load(now);
            for _ in 0..3 {
                let in_flight = u32::try_from(queue.len()).unwrap();
                if guard.admits(&load, Priority::Default, in_flight, now) {
                    queue.push_back(now);
                }
            }
            if let Some(came) = queue.pop_front() {
                let end = now + MS;
                guard.record(end - came, end);
                ended += 1;
            }
        }
        (u32::try_from(queue.len()).unwrap(), ended)
    }

    #[test]
    fn a_long_overload_does_not_make_the_queue_grow_and_costs_no_call() {
        let guard = CpuGuard::new(Instant::now());
        let (in_progress, ended) = overload(&guard, busy, 60_000);
        assert!(in_progress <= 11, "{in_progress}");
        assert!(ended >= 59_900, "{ended}");
    }
}
