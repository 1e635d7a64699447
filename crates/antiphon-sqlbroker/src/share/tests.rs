//! What a member holds, step by step.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;

const WALL: Timestamp = Timestamp::from_millis(1_000_000);

fn message(key: &str) -> Arc<Message> {
    Arc::new(Message {
        id: MessageId::from_bytes([7; 16]),
        topic: "orders".into(),
        kind: "Placed".into(),
        source: "orders".into(),
        key: key.into(),
        time: WALL,
        not_before: None,
        attributes: BTreeMap::new(),
        body: bytes::Bytes::new(),
    })
}

fn at(seq: i64) -> At {
    At { topic: 0, seq }
}

fn ready(lane: u32, seq: i64, key: &str) -> Ready {
    let message = message(key);
    Ready { lane, at: at(seq), attempts: 0, waited: false, claimed: false, message }
}

fn until() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// A share with lane 3, which begins after position 10.
fn share(ordered: bool) -> Share {
    let mut share = Share::new(ordered, 1);
    share.enter(3, 77, until(), vec![Cursor::new(10, BTreeSet::new())], Vec::new(), Vec::new());
    share
}

fn take(share: &mut Share, count: usize) -> Vec<(u64, i64)> {
    let (taken, _) = share.take(count, Instant::now());
    taken.into_iter().map(|(token, ready)| (token, ready.at.seq)).collect()
}

fn settle(share: &mut Share, token: u64, settlement: Settlement) -> Effect {
    share.settle(token, settlement, WALL, Instant::now())
}

fn retry(millis: u64) -> Settlement {
    Settlement::Retry { after: Duration::from_millis(millis), attempts: 1 }
}

#[test]
fn only_what_is_not_settled_stays_open_whatever_the_order_of_settlements() {
    let mut share = share(true);
    for seq in 11..=13 {
        share.read(ready(3, seq, "k"));
    }
    share.scanned(0, 20);
    let taken = take(&mut share, 9);
    assert_eq!(settle(&mut share, taken[2].0, Settlement::Ack), Effect::Noted);
    assert_eq!(settle(&mut share, taken[0].0, Settlement::Ack), Effect::Noted);
    let cursor = &share.lane(3).unwrap().cursors[0];
    assert_eq!((cursor.position, cursor.low()), (20, 12));
    assert_eq!(settle(&mut share, taken[1].0, Settlement::Ack), Effect::Noted);
    assert_eq!(share.lane(3).unwrap().cursors[0].low(), 21);
    assert_eq!(settle(&mut share, taken[1].0, Settlement::Ack), Effect::Stale);
}

#[test]
fn a_released_message_goes_before_later_ones() {
    let mut share = share(true);
    for seq in 11..=13 {
        share.read(ready(3, seq, "k"));
    }
    let taken = take(&mut share, 2);
    settle(&mut share, taken[1].0, Settlement::Release);
    settle(&mut share, taken[0].0, Settlement::Release);
    let again: Vec<i64> = take(&mut share, 9).into_iter().map(|(_, seq)| seq).collect();
    assert_eq!(again, [11, 12, 13]);
}

#[test]
fn a_message_that_waits_parks_the_later_ones_of_its_key_behind_it() {
    let mut share = share(true);
    for (seq, key) in [(11, "a"), (12, "a"), (13, "b")] {
        share.read(ready(3, seq, key));
    }
    let first = take(&mut share, 1)[0].0;
    let Effect::Park(park) = settle(&mut share, first, retry(50)) else { panic!("no park") };
    assert_eq!((park.due, park.attempts), (WALL + Duration::from_millis(50), 1));
    let (taken, parked) = share.take(9, Instant::now());
    assert_eq!(taken.iter().map(|(_, ready)| ready.at.seq).collect::<Vec<_>>(), [13]);
    assert_eq!(parked.iter().map(|park| park.at.seq).collect::<Vec<_>>(), [12]);
    // Both are open until they are written.
    assert_eq!(share.lane(3).unwrap().cursors[0].low(), 11);
    share.parked(&park);
    share.parked(&parked[0]);
    assert_eq!(share.lane(3).unwrap().cursors[0].low(), 13);
    assert!(share.take_due(WALL, 9).is_empty());
    assert_eq!(share.take_due(park.due, 9), [at(11)]);
}

#[test]
fn without_order_a_waiting_message_holds_nothing_back() {
    let mut share = share(false);
    share.read(ready(3, 11, "a"));
    share.read(ready(3, 12, "a"));
    let first = take(&mut share, 1)[0].0;
    assert!(matches!(settle(&mut share, first, retry(50)), Effect::Park(_)));
    assert_eq!(take(&mut share, 9).len(), 1);
}

#[test]
fn a_lane_that_is_taken_over_brings_its_open_messages_once() {
    let mut share = Share::new(true, 1);
    let open = BTreeSet::from([4, 5, 6]);
    // 4 waits by now, 5 is in the log, 6 was settled and removed.
    let waiting = vec![(at(4), "a".to_owned(), Timestamp::EPOCH)];
    let again = vec![ready(1, 4, "a"), ready(1, 5, "b")];
    share.enter(1, 9, until(), vec![Cursor::new(10, open)], waiting, again);
    assert_eq!(share.lane(1).unwrap().cursors[0].open, BTreeSet::from([5]));
    assert_eq!(take(&mut share, 9).len(), 1);
    assert_eq!(share.take_due(WALL, 9), [at(4)]);
}

#[test]
fn what_was_scanned_for_other_lanes_does_not_fit() {
    let mut share = share(true);
    let scan = share.scan();
    assert_eq!((scan.after[0], scan.wanted[0][3], scan.wanted[0][4]), (10, 10, i64::MAX));
    assert!(share.fits(&scan));
    share.enter(4, 78, until(), vec![Cursor::new(2, BTreeSet::new())], Vec::new(), Vec::new());
    assert!(!share.fits(&scan));
    assert_eq!(share.scan().after[0], 2, "the new lane is further behind");
}

#[test]
fn a_lane_that_was_left_makes_its_deliveries_stale() {
    let mut share = share(true);
    share.read(ready(3, 11, "a"));
    let token = take(&mut share, 1)[0].0;
    share.stop(3);
    assert_eq!(share.held_of(3), 1);
    share.leave(3);
    assert_eq!(settle(&mut share, token, Settlement::Ack), Effect::Stale);
}

#[test]
fn a_claimed_delivery_is_settled_by_its_row_after_its_lane_was_left() {
    let mut share = share(false);
    share.read(ready(3, 11, "a"));
    share.read(ready(3, 12, "b"));
    let token = take(&mut share, 1)[0].0;
    share.stop(3);
    assert_eq!(share.claim(3).len(), 1);
    let open = share.lane(3).unwrap().cursors[0].open.clone();
    assert_eq!(open, BTreeSet::from([12]), "what was not handed out is the next holder's");
    share.leave(3);
    assert_eq!(share.held(), 1);
    let effect = settle(&mut share, token, Settlement::Ack);
    assert!(matches!(effect, Effect::Claimed { lane: 3, .. }), "{effect:?}");
}

#[test]
fn an_expired_lease_hands_out_and_settles_nothing() {
    let mut share = share(true);
    share.read(ready(3, 11, "a"));
    share.read(ready(3, 12, "a"));
    let token = take(&mut share, 1)[0].0;
    let late = Instant::now() + Duration::from_secs(61);
    assert!(share.take(9, late).0.is_empty());
    assert_eq!(share.settle(token, Settlement::Ack, WALL, late), Effect::Stale);
}
