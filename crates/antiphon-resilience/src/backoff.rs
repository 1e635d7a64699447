//! How long to wait before the next try of something that failed.
//!
//! The waits of messages and transactions (`antiphon_core::retry`) double, and are spread over half
//! of their length. gRPC prescribes other ones for connections and calls: any factor, and a jitter on
//! both sides of the wait.

use std::time::Duration;

/// Waits that grow by a factor from one failure to the next, up to a longest one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The wait after the first failure, before jitter.
    pub initial: Duration,
    /// The longest wait, before jitter.
    pub max: Duration,
    /// How many times longer each wait is than the one before; below 1 counts as 1.
    pub factor: f64,
    /// The part of a wait by which it is made longer or shorter at random, in `0.0..=1.0`.
    pub jitter: f64,
}

impl Backoff {
    /// Between two attempts to connect: the shape of gRPC's connection backoff (factor 1.6, jitter
    /// 0.2), with waits for services that are near, 100 ms to 10 s.
    pub const CONNECT: Self = Self {
        initial: Duration::from_millis(100),
        max: Duration::from_secs(10),
        factor: 1.6,
        jitter: 0.2,
    };

    /// Between two attempts of a call: gRFC A6, 50 ms doubling to 1 s, 20 % more or less.
    pub const RETRY: Self = Self {
        initial: Duration::from_millis(50),
        max: Duration::from_secs(1),
        factor: 2.0,
        jitter: 0.2,
    };

    /// The wait after so many failures in a row (from 1), with `random` in `0.0..=1.0`.
    #[must_use]
    pub fn wait(&self, failures: u32, random: f64) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let longest = self.max.as_secs_f64();
        let grown = self.initial.as_secs_f64() * self.factor.max(1.0).powi(exponent);
        let spread = self.jitter.clamp(0.0, 1.0) * (2.0 * random.clamp(0.0, 1.0) - 1.0);
        Duration::try_from_secs_f64(grown.min(longest) * (1.0 + spread)).unwrap_or(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(backoff: &Backoff, failures: u32, random: f64) -> u128 {
        (backoff.wait(failures, random).as_secs_f64() * 1_000.0).round() as u128
    }

    #[test]
    fn waits_grow_by_the_factor_up_to_the_longest() {
        let waits = |backoff: &Backoff, n| (1..=n).map(|f| millis(backoff, f, 0.5)).collect();
        let retry: Vec<_> = waits(&Backoff::RETRY, 7);
        assert_eq!(retry, [50, 100, 200, 400, 800, 1_000, 1_000]);
        let connect: Vec<_> = waits(&Backoff::CONNECT, 11);
        assert_eq!(connect, [100, 160, 256, 410, 655, 1_049, 1_678, 2_684, 4_295, 6_872, 10_000]);
    }

    #[test]
    fn jitter_is_a_fifth_on_both_sides() {
        assert_eq!(millis(&Backoff::RETRY, 1, 0.0), 40);
        assert_eq!(millis(&Backoff::RETRY, 1, 1.0), 60);
        assert_eq!(millis(&Backoff::RETRY, 1, 7.0), 60);
        assert_eq!(millis(&Backoff::CONNECT, 100, 0.0), 8_000);
    }

    #[test]
    fn no_number_of_failures_and_no_setting_overflows() {
        assert_eq!(millis(&Backoff::RETRY, 0, 0.5), 50);
        assert_eq!(millis(&Backoff::CONNECT, u32::MAX, 0.5), 10_000);
        let odd = Backoff { factor: f64::NAN, max: Duration::MAX, ..Backoff::RETRY };
        assert_eq!(millis(&odd, u32::MAX, 0.5), 50);
        let longest = Backoff { initial: Duration::MAX, max: Duration::MAX, ..Backoff::RETRY };
        assert_eq!(longest.wait(9, 1.0), Duration::MAX);
        let none = Backoff { initial: Duration::ZERO, factor: f64::INFINITY, ..Backoff::RETRY };
        assert!(none.wait(9, 0.5) <= none.max.mul_f64(1.2));
    }
}
