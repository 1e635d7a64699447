//! How long an instance takes to answer, with a long memory for the worst.
//!
//! The peak-sensitive moving average of Finagle's `p2cPeakEwma`: a call that took longer than the
//! average becomes the average at once; one that took less pulls it down slowly, by how much time
//! has passed and not by how many calls came, and time alone pulls it down too. What the users of
//! its successors found is corrected:
//!
//! * A failure is not a fast answer. It counts as at least a penalty, or as long as the server asks
//!   to be left alone: else an instance that fails at once looks like the best of all.
//! * An instance of which nothing is known counts as moderately slow, for a while, and its first
//!   answer replaces the guess: a guess of a second starves it, and a guess that only decays hides
//!   how fast it is.
//! * Reading changes nothing.
//!
//! The average and its time share one word, so that they change together without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How latencies are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EwmaSettings {
    /// After this long two thirds of a peak are forgotten.
    pub decay: Duration,
    /// What an instance is taken for of which nothing is known.
    pub seed: Duration,
    /// What a failed call counts as at least, unless the server says for how long to stay away.
    pub penalty: Duration,
    /// The most that a server can ask for.
    pub penalty_max: Duration,
}

impl Default for EwmaSettings {
    fn default() -> Self {
        Self {
            decay: Duration::from_secs(10),
            seed: Duration::from_millis(30),
            penalty: Duration::from_secs(5),
            penalty_max: Duration::from_secs(300),
        }
    }
}

/// The latency of one instance. Shared between threads by reference.
///
/// Moments are given as the time since some moment that stays the same.
#[derive(Debug)]
pub struct PeakEwma {
    estimate: AtomicU64,
    decay_millis: f32,
    seed_micros: f32,
}

/// The average as it was at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Estimate {
    /// Negative as long as it is the seed.
    micros: f32,
    /// Of the moment. Wraps after 49 days, when a value of long ago looks like one of just now: it
    /// is forgotten later than it should be, and the next answer corrects it.
    millis: u32,
}

impl Estimate {
    fn pack(self) -> u64 {
        u64::from(self.micros.to_bits()) << 32 | u64::from(self.millis)
    }

    fn unpack(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
        Self {
            micros: f32::from_bits(u32::from_be_bytes([a, b, c, d])),
            millis: u32::from_be_bytes([e, f, g, h]),
        }
    }

    /// How much of it is left at `millis`, in `0.0..=1.0`. All of it when that was earlier: threads
    /// do not report in the order of their clocks.
    fn kept(self, millis: u32, decay_millis: f32) -> f32 {
        let elapsed = millis.wrapping_sub(self.millis);
        if elapsed == 0 || elapsed > u32::MAX / 2 {
            return 1.0;
        }
        (-(elapsed as f32) / decay_millis).exp()
    }

    /// What is known after a call that took `micros` ended at `millis`.
    fn step(self, micros: f32, millis: u32, decay_millis: f32) -> Self {
        if self.micros < 0.0 {
            return Self { micros, millis };
        }
        let kept = self.kept(millis, decay_millis);
        let blended = self.micros * kept + micros * (1.0 - kept);
        let millis = if kept < 1.0 { millis } else { self.millis };
        Self { micros: micros.max(blended), millis }
    }
}

impl PeakEwma {
    /// Nothing is known at `at`.
    #[must_use]
    pub fn new(settings: &EwmaSettings, at: Duration) -> Self {
        let ewma = Self {
            estimate: AtomicU64::new(0),
            decay_millis: (settings.decay.as_secs_f32() * 1_000.0).max(1.0),
            seed_micros: micros(settings.seed),
        };
        ewma.forget(at);
        ewma
    }

    /// Nothing is known any more.
    pub fn forget(&self, at: Duration) {
        let seed = Estimate { micros: -self.seed_micros, millis: millis(at) };
        self.estimate.store(seed.pack(), Relaxed);
    }

    /// A call that took `took` ended at `at`.
    pub fn observe(&self, took: Duration, at: Duration) {
        let (micros, millis) = (micros(took), millis(at));
        let mut word = self.estimate.load(Relaxed);
        loop {
            let next = Estimate::unpack(word).step(micros, millis, self.decay_millis).pack();
            if next == word {
                return;
            }
            match self.estimate.compare_exchange_weak(word, next, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    /// A call that has taken `took` by `at` is not waited for any longer: it raises the average if it
    /// is above it, and says nothing otherwise.
    pub fn observe_at_least(&self, took: Duration, at: Duration) {
        if micros(took) > self.micros(at) {
            self.observe(took, at);
        }
    }

    /// The average at `at`, in microseconds.
    #[must_use]
    pub fn micros(&self, at: Duration) -> f32 {
        let estimate = Estimate::unpack(self.estimate.load(Relaxed));
        estimate.micros.abs() * estimate.kept(millis(at), self.decay_millis)
    }
}

/// At least one, so that nothing costs nothing.
fn micros(time: Duration) -> f32 {
    (time.as_secs_f32() * 1e6).max(1.0)
}

#[expect(clippy::cast_possible_truncation, reason = "it wraps, as `Estimate::millis` says")]
fn millis(at: Duration) -> u32 {
    at.as_millis() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn after(seconds: f32) -> Duration {
        Duration::from_secs_f32(seconds)
    }

    /// Of an instance of which `took` is known at 0.
    fn known(took: Duration) -> PeakEwma {
        let ewma = PeakEwma::new(&EwmaSettings::default(), Duration::ZERO);
        ewma.observe(took, Duration::ZERO);
        ewma
    }

    #[test]
    fn one_call_moves_the_average_as_it_should() {
        let cases = [
            ("longer: at once", 5, 80, 1.0, 80_000.0),
            ("as long: stays", 5, 5, 1.0, 5_000.0),
            ("less, a second later: a tenth of the way", 100, 5, 1.0, 90_960.0),
            ("less, ten seconds later: two thirds of the way", 100, 5, 10.0, 39_949.0),
            ("less, at the same moment: not at all", 100, 5, 0.0, 100_000.0),
        ];
        for (name, before, took, later, expected) in cases {
            let ewma = known(before * MILLI);
            ewma.observe(took * MILLI, after(later));
            let micros = ewma.micros(after(later));
            assert!((micros - expected).abs() < 20.0, "{name}: {micros}");
        }
    }

    #[test]
    fn time_alone_forgets() {
        let ewma = known(5_000 * MILLI);
        for (seconds, expected) in [(0.0, 5e6), (10.0, 1.839e6), (69.0, 5_039.0)] {
            let micros = ewma.micros(after(seconds));
            assert!((micros / expected - 1.0).abs() < 0.01, "{seconds} s: {micros}");
        }
    }

    #[test]
    fn the_first_answer_replaces_the_guess() {
        let ewma = PeakEwma::new(&EwmaSettings::default(), Duration::ZERO);
        assert!((ewma.micros(Duration::ZERO) - 30_000.0).abs() < 1.0);
        assert!((ewma.micros(after(10.0)) - 11_036.0).abs() < 10.0);
        ewma.observe(2 * MILLI, after(0.0));
        assert!((ewma.micros(Duration::ZERO) - 2_000.0).abs() < 1.0);
        ewma.forget(after(5.0));
        assert!((ewma.micros(after(5.0)) - 30_000.0).abs() < 1.0);
    }

    #[test]
    fn a_call_given_up_can_only_raise_the_average() {
        let ewma = known(50 * MILLI);
        ewma.observe_at_least(10 * MILLI, after(5.0));
        let unchanged = known(50 * MILLI);
        assert_eq!(ewma.micros(after(5.0)).to_bits(), unchanged.micros(after(5.0)).to_bits());
        ewma.observe_at_least(90 * MILLI, after(5.0));
        assert!((ewma.micros(after(5.0)) - 90_000.0).abs() < 1.0);
    }

    #[test]
    fn reports_that_come_late_and_clocks_that_wrap_do_no_harm() {
        let ewma = known(50 * MILLI);
        ewma.observe(40 * MILLI, after(2.0));
        let before = ewma.micros(after(2.0));
        ewma.observe(10 * MILLI, after(1.0));
        assert_eq!(ewma.micros(after(2.0)).to_bits(), before.to_bits());

        let wrap = Duration::from_millis(u64::from(u32::MAX));
        let ewma = PeakEwma::new(&EwmaSettings::default(), wrap);
        ewma.observe(50 * MILLI, wrap);
        let micros = ewma.micros(wrap + after(10.0));
        assert!((micros - 18_394.0).abs() < 20.0, "{micros}");
    }

    #[test]
    fn threads_that_report_at_once_lose_no_peak() {
        let ewma = known(MILLI);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let ewma = &ewma;
                scope.spawn(move || {
                    for call in 0..10_000_u32 {
                        let took = Duration::from_micros(u64::from(call * 4 + thread));
                        ewma.observe(took, after(0.5));
                    }
                });
            }
        });
        assert!((ewma.micros(after(0.5)) - 39_999.0).abs() < 1.0, "{}", ewma.micros(after(0.5)));
    }
}
