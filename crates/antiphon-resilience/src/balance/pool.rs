//! Those of a roster's candidates that are picked from, and how one is drawn by weight.
//!
//! Each member covers as much of a line as its weight, one after the other; where all weigh the same
//! each covers 1, and nothing needs to be looked up. A draw is a place on the line, at random or in
//! turns.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::hash::Numbers;

/// Golden ratio, less one: steps of this share of a circle leave gaps of at most three lengths
/// whenever one stops, and thus visit each part of it as often as it is long.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

/// What is picked from. Members are places in the pool, `0..len`.
#[derive(Debug)]
pub(super) struct Pool {
    /// Which candidate of the roster each member is.
    candidates: Vec<u32>,
    /// Where each member's part of the line ends; empty where all weigh the same.
    ends: Vec<u32>,
    /// How long the line is.
    length: u32,
    /// What one turn moves along the line: without a common divisor with its length, so that it comes
    /// to each place once before it comes to any again.
    stride: u32,
    turns: AtomicU64,
}

impl Pool {
    /// Of candidates and their weights; turns begin anywhere.
    pub(super) fn new(members: &[(u32, u32)], random: u64) -> Self {
        let heaviest = members.iter().map(|member| member.1).max().unwrap_or(1).max(1);
        let even = members.iter().all(|member| member.1.max(1) == heaviest);
        let mut ends = Vec::new();
        let mut length = u32::try_from(members.len()).unwrap_or(u32::MAX);
        if !even {
            let total: u64 = members.iter().map(|member| u64::from(member.1.max(1))).sum();
            // A total that does not fit loses the last bits of all weights.
            let shift = (total / (1 << 31)).checked_ilog2().map_or(0, |bits| bits + 1);
            length = 0;
            ends = Vec::with_capacity(members.len());
            for &(_, weight) in members {
                length = length.saturating_add((weight >> shift).max(1));
                ends.push(length);
            }
        }
        Self {
            candidates: members.iter().map(|member| member.0).collect(),
            ends,
            length,
            stride: stride(length),
            // Half of the numbers, so that it never comes to the last.
            turns: AtomicU64::new(random >> 1),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.candidates.len()
    }

    /// The members as candidates.
    pub(super) fn candidates(&self) -> &[u32] {
        &self.candidates
    }

    pub(super) fn candidate(&self, member: usize) -> usize {
        self.candidates.get(member).map_or(usize::MAX, |&candidate| candidate as usize)
    }

    /// One at random, by weight.
    pub(super) fn draw(&self, numbers: &mut Numbers) -> usize {
        self.at(numbers.below(self.length))
    }

    /// One at random, by weight, but not `member`; which is all there is if it is the only one.
    pub(super) fn draw_besides(&self, member: usize, numbers: &mut Numbers) -> usize {
        if self.len() < 2 {
            return member;
        }
        let (from, to) = self.part(member);
        let place = numbers.below(self.length - (to - from));
        self.at(if place < from { place } else { place + (to - from) })
    }

    /// Whose turn it is, weights or not.
    pub(super) fn turn(&self) -> usize {
        let turn = self.turns.fetch_add(1, Relaxed);
        (turn % (self.len() as u64).max(1)) as usize
    }

    /// Whose turn it is, by weight: in `length` turns each has as many as it weighs.
    ///
    /// Weighted round robin is usually a queue by deadline under a lock. Steps of the golden ratio
    /// (Weyl's equidistribution; the three-distance theorem; Knuth, "The Art of Computer
    /// Programming", 6.4) are as even, and need one counter.
    pub(super) fn turn_by_weight(&self) -> usize {
        let turn = self.turns.fetch_add(1, Relaxed);
        let length = u64::from(self.length.max(1));
        let place = (turn % length) * u64::from(self.stride) % length;
        self.at(place as u32)
    }

    /// The weight of a member against the average.
    pub(super) fn share(&self, member: usize) -> f32 {
        if self.ends.is_empty() {
            return 1.0;
        }
        let (from, to) = self.part(member);
        (to - from) as f32 * self.len() as f32 / self.length as f32
    }

    fn at(&self, place: u32) -> usize {
        if self.ends.is_empty() {
            return place as usize;
        }
        self.ends.partition_point(|&end| end <= place)
    }

    fn part(&self, member: usize) -> (u32, u32) {
        if self.ends.is_empty() {
            return (member as u32, member as u32 + 1);
        }
        let from = if member == 0 { 0 } else { self.ends[member - 1] };
        (from, self.ends[member])
    }
}

/// Next to the golden share of `length`, without a common divisor with it.
fn stride(length: u32) -> u32 {
    let golden = (f64::from(length) * GOLDEN) as u32;
    // The last but one place has none with the last, so something is found.
    (golden.max(1)..length.max(2)).find(|&stride| divisor(stride, length) == 1).unwrap_or(1)
}

/// The greatest common one.
fn divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(weights: &[u32]) -> Pool {
        let members: Vec<_> = (0..).zip(weights.iter().copied()).collect();
        Pool::new(&members, 7)
    }

    /// How often each member comes up.
    fn count(pool: &Pool, times: u32, mut next: impl FnMut() -> usize) -> Vec<u32> {
        let mut seen = vec![0; pool.len()];
        (0..times).for_each(|_| seen[next()] += 1);
        seen
    }

    #[test]
    fn a_full_circle_of_turns_gives_each_exactly_its_weight() {
        for weights in [&[1, 2, 3, 4][..], &[1, 99], &[7], &[5, 5, 5], &[1, 1, 1, 1, 1000, 20]] {
            let pool = pool(weights);
            let seen = count(&pool, pool.length, || pool.turn_by_weight());
            let least = weights.iter().min().expect("there is one");
            let even = weights.iter().all(|weight| weight == least);
            let expected = if even { vec![1; weights.len()] } else { weights.to_vec() };
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn turns_by_weight_are_spread_evenly() {
        let pool = pool(&[10, 30, 60]);
        // In every ten turns in a row the heaviest has about six.
        for _ in 0..1_000 {
            let seen = count(&pool, 10, || pool.turn_by_weight());
            assert!((5..=7).contains(&seen[2]) && (2..=4).contains(&seen[1]), "{seen:?}");
        }
    }

    #[test]
    fn weights_that_do_not_fit_keep_their_proportion() {
        let pool = pool(&[u32::MAX, u32::MAX / 2, u32::MAX / 4, 1]);
        assert!((pool.share(0) / pool.share(1) - 2.0).abs() < 1e-3);
        assert!((pool.share(1) / pool.share(2) - 2.0).abs() < 1e-3);
        let mut numbers = Numbers::new(1);
        let seen = count(&pool, 70_000, || pool.draw(&mut numbers));
        assert!(seen[0].abs_diff(40_000) < 600 && seen[3] < 5, "{seen:?}");
    }

    #[test]
    fn a_second_draw_is_another_member_by_the_weights_of_the_others() {
        let mut numbers = Numbers::new(1);
        let weighted = pool(&[1, 2, 3, 4]);
        let seen = count(&weighted, 60_000, || weighted.draw_besides(3, &mut numbers));
        assert_eq!(seen[3], 0);
        assert!(seen[0].abs_diff(10_000) < 300 && seen[2].abs_diff(30_000) < 400, "{seen:?}");
        let even = pool(&[1, 1, 1]);
        let seen = count(&even, 10_000, || even.draw_besides(1, &mut numbers));
        assert!(seen[1] == 0 && seen[0].abs_diff(5_000) < 200, "{seen:?}");
        assert_eq!(pool(&[1]).draw_besides(0, &mut numbers), 0);
    }
}
