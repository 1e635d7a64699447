//! Fewer calls while the processor has no time left for them.
//!
//! The [adaptive limit](crate::limit) sees overload in the times of calls. A process at the end of
//! its processor, or of its cgroup's quota, is overloaded whatever the times say, and what else it
//! does (timers, connections, health) suffers, too. So above 80 % of what it may use, a method gets
//! no more calls in progress than it worked on at its best: by Little's law its highest rate times
//! its shortest time. This is the idea of BBR (Cardwell and others, 2016) as service frameworks such
//! as Kratos use it, with times in microseconds: in whole milliseconds anything faster than one is
//! computed wrong.
//!
//! [`CpuLoad`] knows how busy the process is, one for all; [`CpuGuard`] decides for one method. What
//! reads the system is [`usage`].

pub mod usage;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::window::micros;

/// How often a method's passing calls are looked at.
const BUCKET: Duration = Duration::from_millis(100);
/// For how long what a method did at its best is remembered.
const MEMORY: Duration = Duration::from_secs(10);

/// When a process counts as busy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuSettings {
    /// The part of the processor time it may use above which it is, in `0.0..=1.0`.
    pub threshold: f64,
    /// After this much time a change of the use has come through to two thirds. Frameworks take ten
    /// seconds, in which an overload has done its harm.
    pub smoothing: Duration,
    /// How long it counts as busy after it was seen to be.
    pub cool_off: Duration,
}

impl Default for CpuSettings {
    fn default() -> Self {
        Self { threshold: 0.8, smoothing: Duration::from_secs(2), cool_off: Duration::from_secs(1) }
    }
}

impl CpuSettings {
    /// The average after the part `used` was seen for so long.
    #[must_use]
    pub fn step(&self, average: f64, used: f64, length: Duration) -> f64 {
        let smoothing = self.smoothing.as_secs_f64().max(f64::MIN_POSITIVE);
        let weight = 1.0 - (-length.as_secs_f64() / smoothing).exp();
        average + (used - average) * weight
    }
}

/// How busy the process is. Shared between threads by reference; read without a lock.
#[derive(Debug)]
pub struct CpuLoad {
    settings: CpuSettings,
    origin: Instant,
    seen: Mutex<Seen>,
    /// Until when it counts as busy, in microseconds after the origin.
    busy_until: AtomicU64,
}

/// What was seen last.
#[derive(Debug)]
struct Seen {
    at: Instant,
    cpu_time: Duration,
    average: f64,
}

impl CpuLoad {
    /// A process that had used so much processor time by now, and is not busy.
    #[must_use]
    pub fn new(settings: CpuSettings, cpu_time: Duration, now: Instant) -> Self {
        let seen = Mutex::new(Seen { at: now, cpu_time, average: 0.0 });
        Self { settings, origin: now, seen, busy_until: AtomicU64::new(0) }
    }

    /// Notes how much processor time the process has used since its start
    /// ([`usage::cpu_time`]), of `cores` that it may use ([`usage::cores`]).
    ///
    /// To be called a few times a second, and at least once in each cool-off.
    pub fn note(&self, cpu_time: Duration, cores: f64, now: Instant) {
        let mut seen = self.seen.lock();
        let length = now.saturating_duration_since(seen.at);
        if length.is_zero() {
            return;
        }
        let used = cpu_time.saturating_sub(seen.cpu_time).as_secs_f64();
        let part = used / (length.as_secs_f64() * cores.max(0.001));
        let average = self.settings.step(seen.average, part, length);
        *seen = Seen { at: now, cpu_time, average };
        if average > self.settings.threshold {
            let until = self.since_origin(now).saturating_add(micros(self.settings.cool_off));
            self.busy_until.store(until, Relaxed);
        }
    }

    /// Whether the process is busy, or was a moment ago.
    #[must_use]
    pub fn is_busy(&self, now: Instant) -> bool {
        self.since_origin(now) < self.busy_until.load(Relaxed)
    }

    /// The average part of the processor time in use; 1 is all of it.
    #[must_use]
    pub fn average(&self) -> f64 {
        self.seen.lock().average
    }

    fn since_origin(&self, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.origin))
    }
}

/// How many calls of one method may be in progress while the process is busy.
#[derive(Debug)]
pub struct CpuGuard {
    origin: Instant,
    calls: AtomicU32,
    micros: AtomicU64,
    /// When the open bucket closes, in microseconds after the origin.
    closes: AtomicU64,
    closed: Mutex<Buckets>,
    /// What may be in progress; all before anything was seen.
    allowed: AtomicU32,
}

/// The last ten seconds in buckets, a ring.
#[derive(Debug)]
struct Buckets {
    ring: [Bucket; (MEMORY.as_millis() / BUCKET.as_millis()) as usize],
    next: usize,
    opened: u64,
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

/// The most calls that `buckets` show to have been worked on at once: the highest rate times the
/// shortest time, rounded up, since one too many waits for a moment and one too few is never made up
/// for. `None` when nothing is known from after `oldest`.
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
    Some(((highest * shortest / 1_000_000.0).ceil() as u32).max(1))
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
            closes: AtomicU64::new(micros(BUCKET)),
            closed: Mutex::new(Buckets { ring, next: 0, opened: 0 }),
            allowed: AtomicU32::new(u32::MAX),
        }
    }

    /// Whether one more call may be let in, beside `in_flight` of the method.
    #[must_use]
    pub fn admits(&self, load: &CpuLoad, in_flight: u32, now: Instant) -> bool {
        in_flight < self.allowed.load(Relaxed) || !load.is_busy(now)
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
        // After a long pause the calls in the bucket are those from before it.
        if calls > 0 && length < micros(MEMORY) {
            let calls = f64::from(calls);
            let bucket = Bucket {
                ended: now,
                per_second: calls * 1_000_000.0 / length as f64,
                micros_mean: took as f64 / calls,
            };
            let place = closed.next;
            closed.ring[place] = bucket;
            closed.next = (place + 1) % closed.ring.len();
        }
        closed.opened = now;
        let known = allowed(&closed.ring, now.saturating_sub(micros(MEMORY)));
        self.allowed.store(known.unwrap_or(u32::MAX), Relaxed);
        self.closes.store(now.saturating_add(micros(BUCKET)), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_best_rate_times_the_best_time_is_what_is_worked_on_at_once() {
        let bucket = |ended, per_second, micros_mean| Bucket { ended, per_second, micros_mean };
        assert_eq!(allowed(&[], 0), None);
        assert_eq!(allowed(&[Bucket::default()], 0), None);
        assert_eq!(allowed(&[bucket(1, 400.0, 10_000.0)], 0), Some(4));
        assert_eq!(allowed(&[bucket(1, 400.0, 90_000.0), bucket(2, 50.0, 10_000.0)], 0), Some(4));
        assert_eq!(allowed(&[bucket(1, 400.0, 90_000.0), bucket(2, 50.0, 10_000.0)], 1), Some(1));
        // A method that takes 50 µs: in milliseconds it would be none, or twenty times as many.
        assert_eq!(allowed(&[bucket(1, 100_000.0, 50.0)], 0), Some(5));
        assert_eq!(allowed(&[bucket(1, 1e12, 1e12)], 0), Some(u32::MAX));
    }

    #[test]
    fn the_average_follows_the_use_whatever_the_time_between_looks() {
        let settings = CpuSettings::default();
        let after = |looks: u32| {
            let each = Duration::from_secs(2) / looks;
            (0..looks).fold(0.0, |average, _| settings.step(average, 1.0, each))
        };
        for looks in [1, 8, 100] {
            assert!((after(looks) - 0.632).abs() < 0.001, "{looks}: {}", after(looks));
        }
        let at_once = CpuSettings { smoothing: Duration::ZERO, ..settings };
        assert!((at_once.step(0.2, 0.9, MS) - 0.9).abs() < 1e-9);
    }

    #[test]
    fn a_process_is_busy_above_the_threshold_and_for_a_while_after_it() {
        let start = Instant::now();
        let load = CpuLoad::new(CpuSettings::default(), Duration::ZERO, start);
        let mut cpu_time = Duration::ZERO;
        // Half a core of the quota of half a core: all that it may use.
        let mut busy_at = None;
        for look in 1..=40 {
            cpu_time += 50 * MS;
            let now = start + look * 100 * MS;
            load.note(cpu_time, 0.5, now);
            if busy_at.is_none() && load.is_busy(now) {
                busy_at = Some(look * 100);
            }
        }
        assert_eq!(busy_at, Some(3_300), "0.8 is reached after two times ln(5) seconds");
        let idle = start + Duration::from_secs(4);
        assert!((load.average() - 0.865).abs() < 0.01, "{}", load.average());
        let still = (1..40).take_while(|look| {
            let now = idle + *look * 100 * MS;
            load.note(cpu_time, 0.5, now);
            load.is_busy(now)
        });
        assert_eq!(still.count(), 10, "one look more is above the threshold, then the cool-off");
    }

    #[test]
    fn the_guard_lets_everything_in_while_the_process_is_not_busy() {
        let start = Instant::now();
        let load = CpuLoad::new(CpuSettings::default(), Duration::ZERO, start);
        let guard = CpuGuard::new(start);
        // A call each millisecond that takes 5 ms: five at once.
        for n in 0..1_000 {
            guard.record(5 * MS, start + n * MS);
        }
        let now = start + Duration::from_secs(1);
        assert_eq!(guard.allowed(), 5);
        assert!(guard.admits(&load, 1_000, now));
        load.note(Duration::from_secs(100), 1.0, now);
        assert!(load.is_busy(now));
        assert!(guard.admits(&load, 4, now));
        assert!(!guard.admits(&load, 5, now));
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let start = Instant::now();
        let guard = CpuGuard::new(start);
        (0..1_000).for_each(|n| guard.record(5 * MS, start + n * MS));
        assert_eq!(guard.allowed(), 5);
        let later = start + Duration::from_secs(12);
        (0..1_000).for_each(|n| guard.record(20 * MS, later + n * MS));
        assert_eq!(guard.allowed(), 20);
    }
}
