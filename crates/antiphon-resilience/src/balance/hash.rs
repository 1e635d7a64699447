//! Hashes that are the same in every process and every version, and the random numbers of one pick.

/// What a key or an id hashes to: the same in every client, whatever it was built with, since all
/// must agree on who serves a key. Not for secrets, and not against those who choose their keys to
/// collide.
///
/// FNV-1a (Fowler, Noll, Vo), whose low bits alone are good, and then the finisher of `SplitMix64`.
#[must_use]
pub fn stable_hash(bytes: &[u8]) -> u64 {
    let folded = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(folded)
}

/// Spreads every bit over all: the finisher of `SplitMix64` (Steele, Lea, Flood, "Fast splittable
/// pseudorandom number generators", 2014).
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The random numbers of one pick, made of the one that was given: `SplitMix64`.
#[derive(Debug)]
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(random: u64) -> Self {
        Self(random)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Evenly in `0..limit`, or 0. The bias of multiplying instead of rejecting is below 2^-32.
    pub(super) fn below(&mut self, limit: u32) -> u32 {
        let scaled = (self.next() >> 32) * u64::from(limit);
        u32::try_from(scaled >> 32).unwrap_or(0)
    }

    /// Evenly in `0.0..1.0`.
    pub(super) fn unit(&mut self) -> f32 {
        let bits = u32::try_from(self.next() >> 40).unwrap_or(0);
        bits as f32 / 16_777_216.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients of different versions share one ring: whoever changes these numbers moves all keys.
    #[test]
    fn hashes_stay_what_they_are() {
        assert_eq!(stable_hash(b""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(stable_hash(b"10.0.0.1:8080"), 0xe6be_330c_3d44_a2e2);
    }

    #[test]
    fn numbers_are_spread_evenly() {
        let mut numbers = Numbers::new(7);
        let mut seen = [0_u32; 10];
        let mut sum = 0.0;
        for _ in 0..100_000 {
            seen[numbers.below(10) as usize] += 1;
            sum += f64::from(numbers.unit());
        }
        assert!(seen.iter().all(|&times| times.abs_diff(10_000) < 300), "{seen:?}");
        assert!((sum / 100_000.0 - 0.5).abs() < 0.003, "{sum}");
        assert_eq!(numbers.below(0), 0);
    }
}
