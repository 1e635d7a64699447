//! Tables of what a lane decides, window by window.

use std::time::Duration;

use antiphon_core::Timestamp;
use antiphon_messaging::{PublishErrorKind, Sent};

use super::*;
use crate::relay::fixture::message;

const SETTINGS: RelaySettings = RelaySettings {
    window: 4,
    batch_max: 100,
    sweep_interval: Duration::from_secs(1_000),
    ..RelaySettings::DEFAULT
};

fn lane(now: Instant) -> Lane {
    let lease =
        Lease { scope: "outbox".into(), lane: 3, token: 1, until: Timestamp::from_millis(1) };
    Lane::new(lease, now + Duration::from_secs(600), now)
}

fn row(seq: i64, topic: &str, key: &str) -> OutboxRow {
    OutboxRow { lane: 3, seq: Seq(seq), message: message(topic, key) }
}

/// Reads rows in, as if the store had just these after the position.
fn read(lane: &mut Lane, rows: Vec<OutboxRow>, now: Instant) {
    let reading = lane.reading(&SETTINGS, now).unwrap();
    lane.found(rows, reading, 1_000, &SETTINGS);
}

fn take(lane: &mut Lane, now: Instant) -> Vec<i64> {
    let mut batch = Vec::new();
    lane.take(100, now, &mut batch);
    batch.iter().map(|(seq, _)| seq.0).collect()
}

fn answer(lane: &mut Lane, answers: &[(i64, Option<PublishErrorKind>)], now: Instant) -> Outcome {
    let seqs: Vec<_> = answers.iter().map(|(seq, _)| Seq(*seq)).collect();
    let results: Vec<_> = answers
        .iter()
        .map(|(_, kind)| match kind {
            None => Ok(Receipt),
            Some(kind) => Err(PublishError {
                topic: "t".into(),
                kind: *kind,
                sent: Sent::Maybe,
                source: None,
            }),
        })
        .collect();
    lane.published(&seqs, &results, &SETTINGS, now)
}

const DOWN: Option<PublishErrorKind> = Some(PublishErrorKind::Unroutable);

#[tokio::test(start_paused = true)]
async fn one_batch_at_a_time_and_in_order() {
    let now = Instant::now();
    let mut lane = lane(now);
    read(&mut lane, vec![row(1, "t", "a"), row(2, "t", "b"), row(3, "t", "a")], now);
    assert_eq!(take(&mut lane, now), [1, 2, 3]);
    lane.wake();
    read(&mut lane, vec![row(4, "t", "a")], now);
    assert_eq!(take(&mut lane, now), [0; 0], "a batch is under way");
    answer(&mut lane, &[(1, None), (2, None), (3, None)], now);
    assert_eq!(take(&mut lane, now), [4]);
    assert_eq!(lane.take_confirmed().unwrap().rows, [Seq(1), Seq(2), Seq(3)]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_published_or_read_after_the_local_end_of_the_lease() {
    let now = Instant::now();
    let mut lane = lane(now);
    read(&mut lane, vec![row(1, "t", "a")], now);
    let late = now + Duration::from_secs(600);
    assert_eq!(take(&mut lane, late), [0; 0]);
    lane.wake();
    assert!(lane.reading(&SETTINGS, late).is_none());
    lane.renew(lane.lease().clone(), late + Duration::from_secs(1));
    assert_eq!(take(&mut lane, late), [1], "nobody took it: what is in memory is still true");
}

#[tokio::test(start_paused = true)]
async fn a_row_that_was_removed_while_a_read_was_under_way_is_not_new() {
    let now = Instant::now();
    let mut lane = lane(now);
    read(&mut lane, vec![row(1, "t", "a")], now);
    take(&mut lane, now);
    answer(&mut lane, &[(1, None)], now);
    lane.rewind();
    let reading = lane.reading(&SETTINGS, now).unwrap();
    let rows = lane.take_confirmed().unwrap().rows;
    lane.removed(&rows, true);
    assert_eq!(lane.found(vec![row(1, "t", "a")], reading, 1_000, &SETTINGS), 0);
    assert!(lane.is_idle() && take(&mut lane, now).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_read_that_began_before_a_rewind_is_void() {
    let now = Instant::now();
    let mut lane = lane(now);
    read(&mut lane, vec![row(1, "t", "a")], now);
    lane.wake();
    let reading = lane.reading(&SETTINGS, now).unwrap();
    lane.rewind();
    // Rows before this one may have been left to the store.
    assert_eq!(lane.found(vec![row(9, "t", "a")], reading, 1_000, &SETTINGS), 0);
    assert_eq!(take(&mut lane, now), [1]);
    assert_eq!(lane.reading(&SETTINGS, now).unwrap().position.after, None);
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_down_gets_one_probe_at_a_time() {
    let now = Instant::now();
    let mut lane = lane(now);
    read(&mut lane, vec![row(1, "down", "a"), row(2, "up", "a"), row(3, "down", "b")], now);
    assert_eq!(take(&mut lane, now), [1, 2, 3]);
    answer(&mut lane, &[(1, DOWN), (2, None), (3, DOWN)], now);
    assert_eq!(take(&mut lane, now), [0; 0]);
    let mut at = now;
    for wait in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
        let just_before = at + Duration::from_millis(wait - 1);
        assert_eq!(take(&mut lane, just_before), [0; 0], "after {wait} ms");
        at += Duration::from_millis(wait);
        assert_eq!(lane.blocks.next_probe(), Some(at));
        assert_eq!(take(&mut lane, at), [1], "one row is the probe");
        answer(&mut lane, &[(1, DOWN)], at);
    }
    at += Duration::from_secs(5);
    assert_eq!(take(&mut lane, at), [1]);
    answer(&mut lane, &[(1, None)], at);
    assert_eq!(take(&mut lane, at), [3], "all may go again");
}

#[tokio::test(start_paused = true)]
async fn rows_of_a_blocked_topic_beyond_half_a_window_are_left_to_the_store() {
    let now = Instant::now();
    let mut lane = lane(now);
    let down: Vec<_> = (1..=4).map(|seq| row(seq, "down", "a")).collect();
    read(&mut lane, down.clone(), now);
    let seqs = take(&mut lane, now);
    answer(&mut lane, &seqs.iter().map(|seq| (*seq, DOWN)).collect::<Vec<_>>(), now);
    assert_eq!(lane.waiting, 2, "the others are left to the store");
    lane.wake();
    read(&mut lane, vec![row(5, "down", "a"), row(6, "up", "a")], now);
    assert_eq!(take(&mut lane, now), [6], "what is not blocked gets through");
    answer(&mut lane, &[(6, None)], now);
    let later = now + Duration::from_secs(1);
    assert_eq!(take(&mut lane, later), [1]);
    answer(&mut lane, &[(1, None)], later);
    // Everything is read again from the beginning, so that nothing overtakes.
    assert_eq!(take(&mut lane, later), [2]);
    let reading = lane.reading(&SETTINGS, later).unwrap();
    assert_eq!(reading.position.after, None);
    let rows = down.into_iter().chain([row(5, "down", "a"), row(6, "up", "a")]).collect();
    assert_eq!(lane.found(rows, reading, 1_000, &SETTINGS), 3);
    answer(&mut lane, &[(2, None)], later);
    assert_eq!(take(&mut lane, later), [3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_row_is_not_kept_while_an_earlier_one_of_its_topic_is_only_in_the_store() {
    let now = Instant::now();
    let mut lane = lane(now);
    let rows = [row(1, "b", "k"), row(2, "b", "k"), row(3, "a", "k"), row(4, "a", "k")];
    read(&mut lane, rows.to_vec(), now);
    take(&mut lane, now);
    answer(&mut lane, &[(1, DOWN), (2, DOWN), (3, DOWN), (4, DOWN)], now);
    assert_eq!(lane.waiting, 3, "row 4 is left to the store");
    let later = now + Duration::from_millis(100);
    assert_eq!(take(&mut lane, later), [1, 3]);
    answer(&mut lane, &[(1, None), (3, DOWN)], later);
    assert_eq!(take(&mut lane, later), [2]);
    answer(&mut lane, &[(2, None)], later);
    lane.wake();
    read(&mut lane, vec![row(5, "a", "k")], later);
    let later = later + Duration::from_millis(200);
    assert_eq!(take(&mut lane, later), [3]);
    answer(&mut lane, &[(3, None)], later);
    assert_eq!(take(&mut lane, later), [0; 0], "5 must not overtake 4");
    read(&mut lane, vec![row(4, "a", "k"), row(5, "a", "k")], later);
    assert_eq!(take(&mut lane, later), [4, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_probe_opens_its_topic_as_a_taken_one_does() {
    let now = Instant::now();
    let mut lane = lane(now);
    read(&mut lane, vec![row(1, "t", "a"), row(2, "t", "b")], now);
    take(&mut lane, now);
    answer(&mut lane, &[(1, DOWN), (2, DOWN)], now);
    let later = now + Duration::from_millis(100);
    assert_eq!(take(&mut lane, later), [1]);
    let outcome = answer(&mut lane, &[(1, Some(PublishErrorKind::TooLarge))], later);
    assert_eq!(outcome.bury.len(), 1);
    assert_eq!(take(&mut lane, later), [2]);
}
