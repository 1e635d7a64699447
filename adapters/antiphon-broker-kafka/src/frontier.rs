//! Which records of a partition are done: all below a frontier, and some beyond it.
//!
//! Kafka remembers one number per partition and group: all below it is done. Records are done in any
//! order, so the number that may be written down is the lowest that is not done. What is done beyond
//! is a bitmap, one bit per offset.
//!
//! Always holds: the frontier is not done; it never moves back; it is never above what was received.

use std::collections::VecDeque;
use std::ops::Range;

const BITS: i64 = 64;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Frontier {
    /// The lowest offset that is not done.
    low: i64,
    /// The offset that is received next, if no offset is missing.
    next: i64,
    /// The offset of the first bit of `words`: a multiple of 64, at most `low`.
    origin: i64,
    /// What is done from `origin` on.
    words: VecDeque<u64>,
}

impl Frontier {
    /// All below `low` is done.
    pub(crate) fn new(low: i64) -> Self {
        let low = low.max(0);
        let mut frontier =
            Self { low, next: low, origin: low - low % BITS, words: VecDeque::new() };
        // What is below is done, so that whole words can be dropped.
        frontier.set(frontier.origin..low);
        frontier
    }

    /// The lowest offset that is not done.
    pub(crate) fn low(&self) -> i64 {
        self.low
    }

    /// How many offsets were received from the lowest that is not done.
    pub(crate) fn span(&self) -> u64 {
        u64::try_from(self.next - self.low).unwrap_or(0)
    }

    /// A record has come. Offsets in between do not exist: they were compacted away, or are marks of
    /// transactions. False if the record is done already, or came before.
    pub(crate) fn receive(&mut self, offset: i64) -> bool {
        if offset < self.next {
            return false;
        }
        let gap = self.next..offset;
        self.next = offset + 1;
        if !gap.is_empty() {
            self.finish_all(gap);
        }
        !self.is_done(offset)
    }

    /// Whether the record is done.
    pub(crate) fn is_done(&self, offset: i64) -> bool {
        if offset < self.low {
            return true;
        }
        let (word, bit) = self.place(offset);
        self.words.get(word).is_some_and(|word| word & (1 << bit) != 0)
    }

    /// The record is done.
    pub(crate) fn finish(&mut self, offset: i64) {
        if offset >= self.low {
            self.set(offset..offset + 1);
            self.advance();
        }
    }

    /// These records are done.
    pub(crate) fn finish_all(&mut self, offsets: Range<i64>) {
        let offsets = offsets.start.max(self.low)..offsets.end;
        if !offsets.is_empty() {
            self.set(offsets);
            self.advance();
        }
    }

    /// What is done beyond the frontier, in order.
    pub(crate) fn done(&self) -> impl Iterator<Item = Range<i64>> {
        let end = self.origin + BITS * i64::try_from(self.words.len()).unwrap_or(0);
        let mut at = self.low;
        std::iter::from_fn(move || {
            let start = self.seek(at, end, true)?;
            at = self.seek(start, end, false).unwrap_or(end);
            Some(start..at)
        })
    }

    /// The first offset in `at..end` that is done, or that is not.
    fn seek(&self, mut at: i64, end: i64, done: bool) -> Option<i64> {
        while at < end {
            let (word, bit) = self.place(at);
            let word = self.words.get(word).copied().unwrap_or(0);
            let rest = (if done { word } else { !word }) >> bit;
            if rest != 0 {
                return Some(at + i64::from(rest.trailing_zeros()));
            }
            at += BITS - i64::try_from(bit).unwrap_or(0);
        }
        None
    }

    fn place(&self, offset: i64) -> (usize, usize) {
        let distance = usize::try_from(offset - self.origin).unwrap_or(0);
        (distance / 64, distance % 64)
    }

    fn set(&mut self, offsets: Range<i64>) {
        let mut at = offsets.start;
        while at < offsets.end {
            let (word, bit) = self.place(at);
            if self.words.len() <= word {
                self.words.resize(word + 1, 0);
            }
            let count = (BITS - i64::try_from(bit).unwrap_or(0)).min(offsets.end - at);
            let ones = if count == BITS { u64::MAX } else { (1 << count) - 1 };
            self.words[word] |= ones << bit;
            at += count;
        }
    }

    /// Moves over all that is done, and drops the words that are full.
    fn advance(&mut self) {
        while self.words.front() == Some(&u64::MAX) {
            self.words.pop_front();
            self.origin += BITS;
        }
        let ones = self.words.front().map_or(0, |word| word.trailing_ones());
        self.low = self.low.max(self.origin + i64::from(ones));
        self.next = self.next.max(self.low);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_frontier_is_the_lowest_that_is_not_done() {
        let mut frontier = Frontier::new(100);
        for offset in 100..110 {
            assert!(frontier.receive(offset));
        }
        for offset in [103, 101, 109] {
            frontier.finish(offset);
        }
        assert_eq!((frontier.low(), frontier.span()), (100, 10));
        assert_eq!(frontier.done().collect::<Vec<_>>(), [101..102, 103..104, 109..110]);
        frontier.finish(100);
        assert_eq!(frontier.low(), 102);
        frontier.finish(102);
        assert_eq!((frontier.low(), frontier.span()), (104, 6));
    }

    #[test]
    fn offsets_that_do_not_exist_hold_nothing_up() {
        let mut frontier = Frontier::new(0);
        assert!(frontier.receive(5));
        assert_eq!(frontier.low(), 5);
        assert!(frontier.receive(1_000));
        frontier.finish(5);
        assert_eq!((frontier.low(), frontier.span()), (1_000, 1));
    }

    #[test]
    fn what_came_before_or_is_done_is_not_received_again() {
        let mut frontier = Frontier::new(10);
        frontier.finish_all(12..14);
        let received: Vec<i64> = (9..16).filter(|offset| frontier.receive(*offset)).collect();
        assert_eq!(received, [10, 11, 14, 15]);
        assert!(!frontier.receive(15));
    }

    /// Against a set that remembers everything: any order, with repetitions, gaps and ranges.
    #[test]
    fn it_agrees_with_a_set_in_any_order() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let first = random.i64(0..1_000);
            let (mut frontier, mut open) = (Frontier::new(first), BTreeSet::new());
            let mut next = first;
            for _ in 0..400 {
                if random.u8(0..10) < 5 {
                    next += if random.u8(0..20) == 0 { random.i64(1..200) } else { 1 };
                    assert!(frontier.receive(next - 1));
                    open.insert(next - 1);
                } else if let Some(offset) = random.choice(open.iter().copied().collect::<Vec<_>>())
                {
                    frontier.finish(offset);
                    frontier.finish(offset);
                    open.remove(&offset);
                }
                let low = open.first().copied().unwrap_or(next);
                assert_eq!(frontier.low(), low, "seed {seed}");
                assert_eq!(frontier.span(), u64::try_from(next - low).expect("positive"));
                let done: BTreeSet<i64> = frontier.done().flatten().collect();
                let expected = (low..next).filter(|offset| !open.contains(offset)).collect();
                assert_eq!(done, expected, "seed {seed}");
                assert!(open.iter().all(|offset| !frontier.is_done(*offset)), "seed {seed}");
            }
            for offset in open {
                frontier.finish(offset);
            }
            assert_eq!((frontier.low(), frontier.span()), (next, 0), "seed {seed}");
            assert!(frontier.words.len() <= 1, "seed {seed}: what is done takes no memory");
        }
    }
}
