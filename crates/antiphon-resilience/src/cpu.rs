//! Fewer calls while the processor has no time left for them.
//!
//! The [adaptive limit](crate::limit) sees overload in the times of calls. A process at the end of
//! its processor, or of its cgroup's quota, is overloaded whatever the times say, and what else it
//! does (timers, connections, health) suffers, too. So above 80 % of what it may use, a method gets
//! only as many calls in progress as it needs for its best rate, and a short queue.
//!
//! [`CpuLoad`] knows how busy the process is, one for all; [`CpuGuard`] decides for one method. What
//! reads the system is [`usage`].

mod guard;
pub mod usage;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::window::micros;
pub use guard::{Bucket, CpuGuard, allowed};

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

/// What a process has had of the processor since it began ([`usage::read`]).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuUse {
    /// The processor time that it used, of all threads together.
    pub used: Duration,
    /// The time in which its threads could have run and had to wait, for each other or for the
    /// neighbours on the machine.
    pub waited: Duration,
    /// How many cores it may keep busy now; may be a part of one.
    pub cores: f64,
}

impl CpuUse {
    /// The part of the processor time that was asked for since `before`: what was used, and what was
    /// waited for beside it.
    ///
    /// What was used alone would say of a process beside a busy neighbour that it has time left. No
    /// more of the waiting counts than was used: a process that gets next to nothing of the machine
    /// is not helped by refusing calls.
    #[must_use]
    pub fn asked_since(&self, before: &Self, length: Duration) -> f64 {
        let used = self.used.saturating_sub(before.used);
        let waited = self.waited.saturating_sub(before.waited).min(used);
        (used + waited).as_secs_f64() / (length.as_secs_f64() * self.cores.max(0.001))
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
    cpu: CpuUse,
    average: f64,
}

impl CpuLoad {
    /// A process that had had so much of the processor by now, and is not busy.
    #[must_use]
    pub fn new(settings: CpuSettings, cpu: CpuUse, now: Instant) -> Self {
        let seen = Mutex::new(Seen { at: now, cpu, average: 0.0 });
        Self { settings, origin: now, seen, busy_until: AtomicU64::new(0) }
    }

    /// Notes what the process has had of the processor by now.
    ///
    /// To be called a few times a second, and at least once in each cool-off.
    pub fn note(&self, cpu: CpuUse, now: Instant) {
        let mut seen = self.seen.lock();
        let length = now.saturating_duration_since(seen.at);
        if length.is_zero() {
            return;
        }
        let part = cpu.asked_since(&seen.cpu, length);
        let average = self.settings.step(seen.average, part, length);
        *seen = Seen { at: now, cpu, average };
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

    /// The average part of the processor time that is asked for; 1 is all of it, and more is what has
    /// to wait.
    #[must_use]
    pub fn average(&self) -> f64 {
        self.seen.lock().average
    }

    fn since_origin(&self, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.origin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

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
    fn waiting_counts_as_much_as_what_was_used_beside_it_and_no_more() {
        let part = |used: u32, waited: u32, cores| {
            let cpu = CpuUse { used: used * MS, waited: waited * MS, cores };
            cpu.asked_since(&CpuUse::default(), 1_000 * MS)
        };
        let cases = [
            ("alone", part(500, 0, 1.0), 0.5),
            ("beside a neighbour", part(500, 400, 1.0), 0.9),
            ("with two cores", part(500, 400, 2.0), 0.45),
            ("starved", part(100, 900, 1.0), 0.2),
            ("with half a core", part(450, 0, 0.5), 0.9),
        ];
        for (name, part, expected) in cases {
            assert!((part - expected).abs() < 1e-9, "{name}: {part}");
        }
        // What a thread waited is forgotten when it ends.
        let [before, after] = [(100, 90), (200, 40)].map(|(used, waited)| CpuUse {
            used: used * MS,
            waited: waited * MS,
            cores: 1.0,
        });
        assert!((after.asked_since(&before, 1_000 * MS) - 0.1).abs() < 1e-9);
    }

    #[test]
    fn a_process_is_busy_above_the_threshold_and_for_a_while_after_it() {
        let start = Instant::now();
        let mut cpu = CpuUse { cores: 0.5, ..CpuUse::default() };
        let load = CpuLoad::new(CpuSettings::default(), cpu, start);
        // Half a core of the quota of half a core: all that it may use.
        let mut busy_at = None;
        for look in 1..=40 {
            cpu.used += 50 * MS;
            let now = start + look * 100 * MS;
            load.note(cpu, now);
            if busy_at.is_none() && load.is_busy(now) {
                busy_at = Some(look * 100);
            }
        }
        assert_eq!(busy_at, Some(3_300), "0.8 is reached after two times ln(5) seconds");
        let idle = start + Duration::from_secs(4);
        assert!((load.average() - 0.865).abs() < 0.01, "{}", load.average());
        let still = (1..40).take_while(|look| {
            let now = idle + *look * 100 * MS;
            load.note(cpu, now);
            load.is_busy(now)
        });
        assert_eq!(still.count(), 10, "one look more is above the threshold, then the cool-off");
    }
}
