//! One direction of one connection: what becomes of what is read, decided without a network.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Way;

/// How much a line keeps before it reads no more, so that a slow network pushes back.
const QUEUED_MAX: usize = 256 * 1024;

/// What became of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// They pass at once.
    Passes,
    /// They pass later.
    Waits,
    /// They are lost.
    Swallowed,
    /// Some of them pass, and then the connection is reset.
    Cut,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Line {
    queue: VecDeque<(Instant, Bytes)>,
    queued: usize,
    /// When the last byte that was taken has passed.
    busy_until: Option<Instant>,
    /// For which setting of faults the bytes before the cut are counted, and how many are left.
    cut: Option<(u64, u64)>,
    /// What is queued is the last that passes.
    ending: bool,
    /// Bytes are missing.
    lossy: bool,
}

impl Line {
    /// Whether more may be read.
    pub(super) fn has_room(&self, way: &Way) -> bool {
        !way.hold && !self.ending && self.queued < QUEUED_MAX
    }

    /// Decides about bytes that were read.
    pub(super) fn take(
        &mut self,
        way: &Way,
        generation: u64,
        mut bytes: Bytes,
        now: Instant,
    ) -> Fate {
        if way.swallow {
            self.lossy = true;
            return Fate::Swallowed;
        }
        let mut fate = Fate::Passes;
        if let Some(after) = way.cut_after {
            let left = match self.cut {
                Some((of, left)) if of == generation => left,
                _ => after,
            };
            let passes = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            self.cut = Some((generation, left - passes as u64));
            if passes < bytes.len() {
                bytes.truncate(passes);
                self.ending = true;
                fate = Fate::Cut;
            }
        }
        let due = self.due_for(way, bytes.len(), now);
        if due > now && fate == Fate::Passes {
            fate = Fate::Waits;
        }
        self.queued += bytes.len();
        self.queue.push_back((due, bytes));
        fate
    }

    fn due_for(&mut self, way: &Way, count: usize, now: Instant) -> Instant {
        let arrives = now + way.latency;
        let starts = self.busy_until.map_or(arrives, |busy| busy.max(arrives));
        let takes = match way.bytes_per_second {
            None => Duration::ZERO,
            Some(rate) => {
                let nanoseconds = count as u128 * 1_000_000_000 / u128::from(rate.max(1));
                Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
            }
        };
        let due = starts + takes;
        self.busy_until = Some(due);
        due
    }

    /// When something passes next.
    pub(super) fn next_due(&self, way: &Way) -> Option<Instant> {
        self.queue.front().filter(|_| !way.hold).map(|(due, _)| *due)
    }

    /// What passes now.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        let (_, bytes) = self.queue.pop_front()?;
        self.queued -= bytes.len();
        Some(bytes)
    }

    /// Whether nothing is left that passes.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether the connection is reset now: everything before the cut has passed, or bytes are missing
    /// and more would follow.
    pub(super) fn is_broken(&self, way: &Way) -> bool {
        self.ending && self.queue.is_empty() || self.lossy && !way.swallow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(count: usize) -> Bytes {
        Bytes::from(vec![7; count])
    }

    fn at(line: &Line, way: &Way, start: Instant) -> Option<Duration> {
        line.next_due(way).map(|due| due - start)
    }

    #[test]
    fn without_faults_everything_passes_at_once() {
        let (mut line, way, now) = (Line::default(), Way::default(), Instant::now());
        assert_eq!(line.take(&way, 0, bytes(10), now), Fate::Passes);
        assert_eq!(at(&line, &way, now), Some(Duration::ZERO));
        assert_eq!(line.next().map(|bytes| bytes.len()), Some(10));
        assert!(line.is_empty() && !line.is_broken(&way) && line.has_room(&way));
    }

    #[test]
    fn latency_delays_and_does_not_slow() {
        let way = Way { latency: Duration::from_millis(50), ..Way::default() };
        let (mut line, now) = (Line::default(), Instant::now());
        assert_eq!(line.take(&way, 1, bytes(10), now), Fate::Waits);
        line.take(&way, 1, bytes(10), now + Duration::from_millis(1));
        assert_eq!(at(&line, &way, now), Some(Duration::from_millis(50)));
        line.next();
        assert_eq!(at(&line, &way, now), Some(Duration::from_millis(51)));
    }

    #[test]
    fn what_comes_after_a_healed_latency_does_not_overtake() {
        let slow = Way { latency: Duration::from_millis(50), ..Way::default() };
        let (mut line, now) = (Line::default(), Instant::now());
        line.take(&slow, 1, bytes(1), now);
        line.take(&Way::default(), 2, bytes(2), now);
        assert_eq!(line.next().map(|bytes| bytes.len()), Some(1));
        assert_eq!(at(&line, &slow, now), Some(Duration::from_millis(50)));
    }

    #[test]
    fn bandwidth_adds_up() {
        let way = Way { bytes_per_second: Some(1_000), ..Way::default() };
        let (mut line, now) = (Line::default(), Instant::now());
        line.take(&way, 1, bytes(100), now);
        line.take(&way, 1, bytes(300), now);
        line.next();
        assert_eq!(at(&line, &way, now), Some(Duration::from_millis(400)));
    }

    #[test]
    fn a_full_line_reads_no_more() {
        let way = Way { bytes_per_second: Some(1), ..Way::default() };
        let (mut line, now) = (Line::default(), Instant::now());
        line.take(&way, 1, bytes(QUEUED_MAX), now);
        assert!(!line.has_room(&way));
        line.next();
        assert!(line.has_room(&way));
    }

    #[test]
    fn what_is_held_arrives_later() {
        let hold = Way { hold: true, ..Way::default() };
        let (mut line, now) = (Line::default(), Instant::now());
        line.take(&Way::default(), 0, bytes(1), now);
        assert_eq!(at(&line, &hold, now), None);
        assert!(!line.has_room(&hold) && !line.is_broken(&hold));
        assert_eq!(at(&line, &Way::default(), now), Some(Duration::ZERO));
    }

    #[test]
    fn what_lost_bytes_is_reset_when_more_would_pass() {
        let swallow = Way { swallow: true, ..Way::default() };
        let (mut line, now) = (Line::default(), Instant::now());
        assert_eq!(line.take(&swallow, 1, bytes(5), now), Fate::Swallowed);
        assert!(line.is_empty() && !line.is_broken(&swallow));
        assert!(line.is_broken(&Way::default()));
    }

    #[test]
    fn a_line_that_lost_nothing_is_not_reset() {
        let line = Line::default();
        assert!(!line.is_broken(&Way::default()));
    }

    #[test]
    fn a_cut_passes_as_many_bytes_as_it_says() {
        let cut = Way { cut_after: Some(15), ..Way::default() };
        let (mut line, now) = (Line::default(), Instant::now());
        assert_eq!(line.take(&cut, 1, bytes(10), now), Fate::Passes);
        assert_eq!(line.take(&cut, 1, bytes(10), now), Fate::Cut);
        assert!(!line.has_room(&cut) && !line.is_broken(&cut));
        assert_eq!(line.next().map(|bytes| bytes.len()), Some(10));
        assert_eq!(line.next().map(|bytes| bytes.len()), Some(5));
        assert!(line.is_broken(&cut));
    }

    #[test]
    fn a_cut_that_is_set_again_counts_again() {
        let cut = Way { cut_after: Some(15), ..Way::default() };
        let (mut line, now) = (Line::default(), Instant::now());
        line.take(&cut, 1, bytes(15), now);
        assert_eq!(line.take(&cut, 2, bytes(10), now), Fate::Passes);
    }
}
