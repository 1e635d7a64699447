//! Whether the store of shared limits can be asked.
//!
//! After three failures in a row nobody waits for it any more: each instance keeps the limits alone,
//! and twice a second one question is sent beside the calls, without any of them waiting for it. The
//! first that is answered ends this.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// So many failures in a row, and the store counts as away.
const FAILURES: u32 = 3;
/// How often a store that is away is asked.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// Whether the store is away. Shared between threads by reference. Times are nanoseconds after any
/// origin.
#[derive(Debug, Default)]
pub struct Outage {
    failures: AtomicU32,
    /// 0 while the store is there; else when it is to be asked again.
    probe_at: AtomicU64,
}

/// How to decide about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By what the store says.
    Shared,
    /// Alone.
    Alone,
    /// Alone, and ask the store beside it.
    Probe,
}

impl Outage {
    /// How to decide about a call at `now`. [`Way::Probe`] comes once in half a second.
    pub fn way(&self, now: u64) -> Way {
        let probe_at = self.probe_at.load(Relaxed);
        if probe_at == 0 {
            return Way::Shared;
        }
        let is_probe = now >= probe_at
            && self.probe_at.compare_exchange(probe_at, next(now), Relaxed, Relaxed).is_ok();
        if is_probe { Way::Probe } else { Way::Alone }
    }

    /// A question failed, at `now`. Whether the store counts as away because of it, and did not before.
    pub fn failed(&self, now: u64) -> bool {
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        failures >= FAILURES
            && self.probe_at.compare_exchange(0, next(now), Relaxed, Relaxed).is_ok()
    }

    /// A question was answered. Whether the store had counted as away.
    pub fn answered(&self) -> bool {
        self.failures.store(0, Relaxed);
        // Most find it as it should be, and need not write.
        self.probe_at.load(Relaxed) != 0 && self.probe_at.swap(0, Relaxed) != 0
    }
}

fn next(now: u64) -> u64 {
    now.saturating_add(super::nanos(PROBE_INTERVAL)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn three_failures_in_a_row_are_an_outage_and_an_answer_ends_it() {
        let outage = Outage::default();
        assert!(!outage.failed(0) && !outage.failed(0) && !outage.answered());
        assert!(!outage.failed(0) && !outage.failed(0));
        assert_eq!(outage.way(0), Way::Shared, "an answer came between");
        assert!(outage.failed(0));
        assert!(!outage.failed(0), "it is said once");
        assert_eq!(outage.way(499 * MS), Way::Alone);
        assert!(outage.answered() && !outage.answered());
        assert_eq!(outage.way(499 * MS), Way::Shared);
    }

    #[test]
    fn one_call_in_half_a_second_asks() {
        let outage = Outage::default();
        (0..3).for_each(|_| _ = outage.failed(0));
        let probes: Vec<u64> = (0..1_700).filter(|ms| outage.way(ms * MS) == Way::Probe).collect();
        assert_eq!(probes, [500, 1_000, 1_500]);
        assert!(!outage.failed(1_700 * MS), "a probe that fails is no news");
        assert_eq!(outage.way(1_800 * MS), Way::Alone);
    }

    #[test]
    fn of_many_threads_one_asks() {
        let outage = Outage::default();
        (0..3).for_each(|_| _ = outage.failed(0));
        let probes: usize = std::thread::scope(|scope| {
            let work = || (0..1_000).filter(|_| outage.way(600 * MS) == Way::Probe).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(probes, 1);
    }
}
