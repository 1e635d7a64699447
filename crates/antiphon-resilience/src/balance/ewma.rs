//! How long an instance takes to answer, with a long memory for the worst.
//!
//! The peak-sensitive moving average of Finagle's `p2cPeakEwma`: a call that took longer than the
//! average becomes the average at once; one that took less pulls it down slowly, by how much time
//! has passed and not by how many calls came, and time alone pulls it down too. What the users of
//! its successors found is corrected:
//!
//! * A failure is not a fast answer. It counts as at least a penalty, or as long as the server asks
//!   to be left alone: else an instance that fails at once looks like the best of all.
//! * The first good answer to a call that began after the failure takes the penalty away. One that
//!   only decays keeps an instance without calls for a minute because of a single failure; and an
//!   instance that fails often meets its next failure soon.
//! * An instance of which nothing is known counts as moderately slow, for a while, and its first
//!   answer replaces the guess: a guess of a second starves it, and a guess that only decays hides
//!   how fast it is.
//! * Reading changes nothing.
//!
//! The average and its time share one word, so that they change together without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::retry::Pushback;

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
            penalty_max: Pushback::WAIT_MAX,
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
    /// Negative as long as it is a guess, which the next good answer replaces: the seed or a penalty.
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

    /// Whether it is of a moment before `millis`.
    fn is_before(self, millis: u32) -> bool {
        (1..=u32::MAX / 2).contains(&millis.wrapping_sub(self.millis))
    }

    /// What is known after a call that began at `begun`, took `micros` and was answered at `millis`.
    fn answered(self, micros: f32, begun: u32, millis: u32, decay_millis: f32) -> Self {
        if self.micros < 0.0 {
            // One that was in flight already when another failed does not excuse that.
            return if self.is_before(begun) { Self { micros, millis } } else { self };
        }
        let kept = self.kept(millis, decay_millis);
        let blended = self.micros * kept + micros * (1.0 - kept);
        Self { micros: micros.max(blended), ..self.moved(millis, kept) }
    }

    /// What is known after a call that failed at `millis` and counts as `micros`.
    fn failed(self, micros: f32, millis: u32, decay_millis: f32) -> Self {
        let kept = self.kept(millis, decay_millis);
        Self { micros: -micros.max(self.micros.abs() * kept), ..self.moved(millis, kept) }
    }

    /// Never back.
    fn moved(self, millis: u32, kept: f32) -> Self {
        Self { millis: if kept < 1.0 { millis } else { self.millis }, ..self }
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
        // A millisecond earlier, so that a call of this moment is after it.
        let millis = millis(at).wrapping_sub(1);
        let seed = Estimate { micros: -self.seed_micros, millis };
        self.estimate.store(seed.pack(), Relaxed);
    }

    /// A call that began at `begun` was answered at `at`.
    pub fn answered(&self, begun: Duration, at: Duration) {
        let took = micros(at.saturating_sub(begun));
        let (begun, at) = (millis(begun), millis(at));
        self.update(|estimate| estimate.answered(took, begun, at, self.decay_millis));
    }

    /// Whether a call that began at `begun` tells something new: nothing went wrong since the last good
    /// answer, or the call began after it did.
    #[must_use]
    pub fn is_news(&self, begun: Duration) -> bool {
        let estimate = Estimate::unpack(self.estimate.load(Relaxed));
        estimate.micros >= 0.0 || estimate.is_before(millis(begun))
    }

    /// A call failed at `at`, and counts as if it had taken `penalty`.
    pub fn failed(&self, penalty: Duration, at: Duration) {
        let (penalty, at) = (micros(penalty), millis(at));
        self.update(|estimate| estimate.failed(penalty, at, self.decay_millis));
    }

    /// A call that began at `begun` is not waited for any longer at `at`: it raises the average if
    /// it has taken more, and says nothing otherwise.
    pub fn given_up(&self, begun: Duration, at: Duration) {
        if micros(at.saturating_sub(begun)) > self.micros(at) {
            self.answered(begun, at);
        }
    }

    fn update(&self, step: impl Fn(Estimate) -> Estimate) {
        let mut word = self.estimate.load(Relaxed);
        loop {
            let next = step(Estimate::unpack(word)).pack();
            if next == word {
                return;
            }
            match self.estimate.compare_exchange_weak(word, next, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(now) => word = now,
            }
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

    /// A moment at which calls are answered; early ones begin before it.
    const START: Duration = Duration::from_secs(100);

    fn answer(ewma: &PeakEwma, took: Duration, at: Duration) {
        ewma.answered(at - took, at);
    }

    fn micros_after(ewma: &PeakEwma, seconds: f32) -> f32 {
        ewma.micros(START + after(seconds))
    }

    /// Of an instance that took as long at the start.
    fn known(took: Duration) -> PeakEwma {
        let ewma = PeakEwma::new(&EwmaSettings::default(), Duration::ZERO);
        answer(&ewma, took, START);
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
            answer(&ewma, took * MILLI, START + after(later));
            let micros = micros_after(&ewma, later);
            assert!((micros - expected).abs() < 20.0, "{name}: {micros}");
        }
    }

    #[test]
    fn time_alone_forgets() {
        let ewma = known(5_000 * MILLI);
        for (seconds, expected) in [(0.0, 5e6), (10.0, 1.839e6), (69.0, 5_039.0)] {
            let micros = micros_after(&ewma, seconds);
            assert!((micros / expected - 1.0).abs() < 0.01, "{seconds} s: {micros}");
        }
    }

    #[test]
    fn the_first_answer_replaces_the_guess() {
        let ewma = PeakEwma::new(&EwmaSettings::default(), Duration::ZERO);
        assert!((ewma.micros(Duration::ZERO) - 30_000.0).abs() < 5.0);
        assert!((ewma.micros(after(10.0)) - 11_036.0).abs() < 10.0);
        ewma.answered(Duration::ZERO, 2 * MILLI);
        assert!((ewma.micros(2 * MILLI) - 2_000.0).abs() < 1.0);
        ewma.forget(START);
        assert!((ewma.micros(START) - 30_000.0).abs() < 5.0);
        answer(&ewma, 2 * MILLI, START + MILLI);
        assert!((ewma.micros(START) - 30_000.0).abs() < 5.0, "it began before");
    }

    #[test]
    fn a_penalty_lasts_until_a_call_after_it_is_answered_well() {
        let ewma = known(5 * MILLI);
        ewma.failed(5_000 * MILLI, START + after(1.0));
        assert!((micros_after(&ewma, 1.0) - 5e6).abs() < 1.0);
        ewma.answered(START + after(0.9), START + after(2.0));
        assert!((micros_after(&ewma, 2.0) - 4.524e6).abs() < 1e3, "in flight when it failed");
        ewma.failed(20 * MILLI, START + after(2.0));
        assert!((micros_after(&ewma, 2.0) - 4.524e6).abs() < 1e3, "a small one takes nothing off");
        ewma.answered(START + after(6.0), START + after(6.004));
        assert!((micros_after(&ewma, 6.004) - 4_000.0).abs() < 5.0);
    }

    #[test]
    fn a_call_given_up_can_only_raise_the_average() {
        let (ewma, unchanged) = (known(50 * MILLI), known(50 * MILLI));
        let at = START + after(5.0);
        ewma.given_up(at - 10 * MILLI, at);
        assert_eq!(ewma.micros(at).to_bits(), unchanged.micros(at).to_bits());
        ewma.given_up(at - 90 * MILLI, at);
        assert!((ewma.micros(at) - 90_000.0).abs() < 1.0);
    }

    #[test]
    fn reports_that_come_late_and_clocks_that_wrap_do_no_harm() {
        let ewma = known(50 * MILLI);
        answer(&ewma, 40 * MILLI, START + after(2.0));
        let before = micros_after(&ewma, 2.0);
        answer(&ewma, 10 * MILLI, START + after(1.0));
        assert_eq!(micros_after(&ewma, 2.0).to_bits(), before.to_bits());

        let wrap = Duration::from_millis(u64::from(u32::MAX));
        let ewma = PeakEwma::new(&EwmaSettings::default(), wrap);
        ewma.answered(wrap, wrap + 50 * MILLI);
        let micros = ewma.micros(wrap + 50 * MILLI + after(10.0));
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
                        answer(ewma, took, START + after(0.5));
                    }
                });
            }
        });
        assert!((micros_after(&ewma, 0.5) - 39_999.0).abs() < 1.0);
    }
}
