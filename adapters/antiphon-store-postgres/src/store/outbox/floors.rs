//! Where the rows of a lane begin: what was deleted below need not be passed by.
//!
//! A deleted row stays in table and index until it is vacuumed, which an old transaction may hold up
//! for hours. Whoever reads a lane from its beginning passes all of them by, twice a second, and
//! such a long read holds up the vacuum in turn. So this remembers below which position a read has
//! found nothing, and later ones begin there.
//!
//! A transaction draws its positions in its last statement: what was not to be seen when the lane was
//! read is to be seen [`GRACE`] later, or its commit hangs. For those that hang, a lane is read from
//! its very beginning at times, which takes a small part of the time.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a commit takes at most, almost always.
const GRACE: Duration = Duration::from_secs(3);
/// The wait after a read from the very beginning, at least.
const WHOLE_MIN: Duration = Duration::from_secs(10);
/// The same, as a multiple of how long it took.
const WHOLE_REST: u32 = 20;

/// The lanes that this process reads.
#[derive(Debug, Default)]
pub(crate) struct Floors(Mutex<HashMap<u32, Floor>>);

#[derive(Debug)]
struct Floor {
    /// Reads begin behind it.
    at: i64,
    /// The next one, and from when on it counts.
    next: Option<(Instant, i64)>,
    /// The highest position that any read has found.
    seen: i64,
    whole_at: Instant,
}

impl Floors {
    /// Behind which position a read of `lane` from its beginning begins.
    pub(super) fn begin(&self, lane: u32, now: Instant) -> i64 {
        let mut lanes = self.0.lock();
        let Some(floor) = lanes.get_mut(&lane) else { return 0 };
        if floor.whole_at <= now {
            return 0;
        }
        if let Some((_, at)) = floor.next.take_if(|(from, _)| *from <= now) {
            floor.at = at;
        }
        floor.at
    }

    /// A read that was asked for at `asked_at` behind the position `begin` has found these positions
    /// in the table, in ascending order. `is_first` when nothing was left out before `begin`.
    pub(super) fn found(
        &self,
        lane: u32,
        (begin, is_first): (i64, bool),
        positions: &[i64],
        (asked_at, now): (Instant, Instant),
    ) {
        let mut lanes = self.0.lock();
        let floor =
            lanes.entry(lane).or_insert(Floor { at: 0, next: None, seen: 0, whole_at: now });
        floor.seen = floor.seen.max(positions.last().copied().unwrap_or(0));
        if !is_first {
            return;
        }
        if begin == 0 {
            floor.whole_at = now + ((now - asked_at) * WHOLE_REST).max(WHOLE_MIN);
        }
        let lowest = positions.first().map_or(floor.seen, |first| first - 1);
        if lowest < floor.at {
            (floor.at, floor.next) = (lowest, None);
        } else if floor.next.is_none() {
            floor.next = Some((asked_at + GRACE, lowest));
        } else if let Some((_, next)) = &mut floor.next {
            // What was late.
            *next = lowest.min(*next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What a read from the beginning at `now` finds; answers behind which position it began.
    fn read(floors: &Floors, positions: &[i64], now: Instant) -> i64 {
        let begin = floors.begin(7, now);
        floors.found(7, (begin, true), positions, (now, now));
        begin
    }

    #[tokio::test]
    async fn reads_begin_where_rows_were_some_time_ago() {
        let (floors, now) = (Floors::default(), Instant::now());
        assert_eq!(read(&floors, &[10, 20], now), 0);
        assert_eq!(read(&floors, &[90], now + GRACE / 2), 0);
        assert_eq!(read(&floors, &[100], now + GRACE), 9);
        assert_eq!(read(&floors, &[], now + GRACE + SECOND), 9);
        assert_eq!(read(&floors, &[], now + GRACE * 2), 99);
        assert_eq!(floors.begin(8, now + GRACE), 0, "nothing is known of other lanes");
    }

    #[tokio::test]
    async fn behind_an_empty_lane_reads_begin_after_the_last_row_that_was_there() {
        let (floors, now) = (Floors::default(), Instant::now());
        read(&floors, &[10], now);
        floors.found(7, (10, false), &[11, 12], (now, now));
        read(&floors, &[], now + GRACE);
        assert_eq!(floors.begin(7, now + GRACE * 2), 12);
    }

    #[tokio::test]
    async fn a_row_that_was_late_is_not_left_out() {
        let (floors, now) = (Floors::default(), Instant::now());
        read(&floors, &[10], now);
        // Within the grace.
        read(&floors, &[5, 10], now + SECOND);
        assert_eq!(read(&floors, &[5], now + GRACE), 4);
        // After it: found by a read of the whole lane.
        let later = now + SECOND + WHOLE_MIN;
        assert_eq!(read(&floors, &[3, 5], later), 0);
        assert_eq!(read(&floors, &[3, 5], later + SECOND), 2);
    }

    #[tokio::test]
    async fn reads_of_the_whole_lane_take_a_small_part_of_the_time() {
        let (floors, now) = (Floors::default(), Instant::now());
        floors.found(7, (0, true), &[10], (now, now + SECOND));
        assert_eq!(floors.begin(7, now + SECOND * WHOLE_REST), 9);
        assert_eq!(floors.begin(7, now + SECOND * (WHOLE_REST + 1)), 0);
    }
}
