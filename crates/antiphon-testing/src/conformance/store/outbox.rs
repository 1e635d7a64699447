//! `OutboxStore`: nothing skipped, nothing out of order, nothing without the lease.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use antiphon_core::MessageId;
use antiphon_messaging::{LANES, Message, lane_of};
use antiphon_outbox::{
    Confirmation, Lease, LeaseStore, OutboxRow, OutboxStore, Position, SentCount, Seq, Store,
    StoreError, outbox_lane,
};
use tokio::time::timeout;

use super::{
    PATIENCE, QUIET, StoreHarness, StoreOf, TTL, all_lanes, begin, commit, lease_of, message,
    read_all, text, texts,
};

fn confirmations(leases: &[Lease], rows: &[OutboxRow]) -> Vec<Confirmation> {
    let mut by_lane: BTreeMap<u32, Vec<Seq>> = BTreeMap::new();
    for row in rows {
        by_lane.entry(row.lane).or_default().push(row.seq);
    }
    by_lane
        .into_iter()
        .map(|(lane, rows)| Confirmation { lease: lease_of(leases, lane).clone(), rows })
        .collect()
}

/// A key of another lane than `key`.
fn key_elsewhere(key: &str) -> String {
    (0..).map(|n| format!("other-{n}")).find(|other| lane_of(other) != lane_of(key)).expect("found")
}

/// Rule 1 (the rest of it is in `transactions`): every field comes back, in the lane of its key.
pub async fn a_message_is_read_as_it_was_written<H: StoreHarness>(harness: &mut H) {
    let store = harness.open().await;
    let mut full = message(&store, "ключ-🔑", "body \u{0} with everything");
    full.not_before = Some(store.now());
    full.attributes = BTreeMap::from([
        ("traceparent".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        ("baggage".into(), "k=v; \"quoted\", 'q'".into()),
        ("empty".into(), String::new()),
    ]);
    let mut bare = message(&store, "", "");
    bare.attributes.clear();
    commit(&store, &[full.clone(), bare.clone()]).await;
    let rows = read_all(&harness.open().await).await;
    assert_eq!(rows.len(), 2);
    for written in [full, bare] {
        let row = rows.iter().find(|row| row.message.id == written.id).expect("it is there");
        assert_eq!(row.lane, outbox_lane(&written));
        assert_eq!(row.message, written);
    }
}

/// What `read` promises of positions and bounds.
pub async fn reads_go_on_from_their_positions_and_are_bounded_per_lane<H: StoreHarness>(
    harness: &mut H,
) {
    let store = harness.open().await;
    let (a, b) = ("a".to_owned(), key_elsewhere("a"));
    for n in 0..6 {
        let both = [message(&store, &a, &format!("a{n}")), message(&store, &b, &format!("b{n}"))];
        commit(&store, &both).await;
    }
    let lane = |key: &str| lane_of(key);
    let read = async |positions: &[Position], count: u32| {
        store.read(positions, store.now(), count).await.expect("the outbox can be read")
    };
    let only = |rows: &[OutboxRow], lane: u32| -> Vec<OutboxRow> {
        rows.iter().filter(|row| row.lane == lane).cloned().collect()
    };
    let from_start =
        [Position { lane: lane(&a), after: None }, Position { lane: lane(&b), after: None }];
    let rows = read(&from_start, 4).await;
    let (of_a, of_b) = (only(&rows, lane(&a)), only(&rows, lane(&b)));
    assert_eq!(texts(&of_a), ["a0", "a1", "a2", "a3"]);
    assert_eq!(texts(&of_b), ["b0", "b1", "b2", "b3"]);
    let onward = [
        Position { lane: lane(&a), after: of_a.last().map(|row| row.seq) },
        Position { lane: lane(&b), after: of_b.first().map(|row| row.seq) },
    ];
    let rows = read(&onward, 4).await;
    assert_eq!(texts(&only(&rows, lane(&a))), ["a4", "a5"]);
    assert_eq!(texts(&only(&rows, lane(&b))), ["b1", "b2", "b3", "b4"]);
    assert!(read(&[], 4).await.is_empty(), "lanes that were not asked for are not read");
}

/// Rule 2.
pub async fn rows_of_a_key_come_in_the_order_of_their_commits<H: StoreHarness>(harness: &mut H) {
    let stores = [harness.open().await, harness.open().await];
    for n in 0..40 {
        let store = &stores[n % 2];
        let batch = [
            message(store, "k", &(2 * n).to_string()),
            message(store, "k", &(2 * n + 1).to_string()),
        ];
        commit(store, &batch).await;
    }
    let rows = read_all(&stores[0]).await;
    assert_eq!(texts(&rows), (0..80).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(rows.is_sorted_by(|a, b| a.seq < b.seq), "positions grow");
}

/// Rule 2, after the test of Watermill that names it (`TestNotMissingMessages`): transactions that
/// overlap commit in reverse, one rolls back, and the reader is past their numbers already.
///
/// A store that lets one transaction write at a time makes the others wait, and passes as well.
pub async fn a_late_commit_is_not_skipped<H: StoreHarness>(harness: &mut H) {
    let (store, reader) = (harness.open().await, harness.open().await);
    let mut open = Vec::new();
    for n in 0..4 {
        let Ok(Ok(mut connection)) = timeout(QUIET, store.begin()).await else {
            break;
        };
        H::add(&store, &mut connection, &format!("row-{n}"), 1).await.expect("rows can be written");
        let key = format!("key-{n}");
        let message = message(&store, &key, &n.to_string());
        store.append(&mut connection, &[message]).await.expect("messages can be appended");
        open.push((n, connection));
    }
    let overlapping = open.len();
    assert!(overlapping > 0, "one transaction can be opened");
    let mut seen = BTreeSet::new();
    let mut expected = BTreeSet::new();
    for (n, connection) in open.into_iter().rev() {
        if n == 1 {
            drop(connection);
        } else {
            store.commit(connection).await.expect("the transaction can be committed");
            expected.insert(n.to_string());
        }
        seen.extend(read_all(&reader).await.iter().map(|row| text(row).to_owned()));
    }
    for n in overlapping..4 {
        commit(&store, &[message(&store, &format!("key-{n}"), &n.to_string())]).await;
        expected.insert(n.to_string());
    }
    seen.extend(read_all(&reader).await.iter().map(|row| text(row).to_owned()));
    assert_eq!(seen, expected);
}

/// Rule 2, over several processes: a reader that goes on from where it was and now and then starts
/// over finds every row, and the rows of each key in order.
pub async fn concurrent_writers_and_a_reader_lose_nothing<H: StoreHarness>(harness: &mut H) {
    const WRITERS: usize = 3;
    const EACH: usize = 40;
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        writers.push(tokio::spawn(write_series::<H>(harness.open().await, writer, EACH)));
    }
    let reader = harness.open().await;
    let mut seen: BTreeMap<MessageId, OutboxRow> = BTreeMap::new();
    let mut after: BTreeMap<u32, Seq> = BTreeMap::new();
    let mut round = 0;
    let reading = async {
        while seen.len() < WRITERS * EACH {
            round += 1;
            if round % 5 == 0 {
                after.clear();
            }
            let positions: Vec<_> = (0..LANES)
                .map(|lane| Position { lane, after: after.get(&lane).copied() })
                .collect();
            for row in reader.read(&positions, reader.now(), 7).await.expect("it can be read") {
                let last = after.entry(row.lane).or_insert(row.seq);
                *last = row.seq.max(*last);
                seen.insert(row.message.id, row);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            // A bounded read from the beginning never gets past rows that nobody removes.
            if round % 50 == 0 {
                for row in read_all(&reader).await {
                    seen.insert(row.message.id, row);
                }
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("every row is found");
    for writer in writers {
        writer.await.expect("no writer fails");
    }
    let mut rows: Vec<_> = seen.into_values().collect();
    rows.sort_by_key(|row| (row.message.key.clone(), row.seq));
    for writer in 0..WRITERS {
        let key = format!("writer-{writer}");
        let of_key: Vec<_> = rows.iter().filter(|row| row.message.key == key).map(text).collect();
        assert_eq!(of_key, (0..EACH).map(|n| n.to_string()).collect::<Vec<_>>(), "{key}");
    }
}

async fn write_series<H: StoreHarness>(store: StoreOf<H>, writer: usize, count: usize) {
    for n in 0..count {
        commit(&store, &[message(&store, &format!("writer-{writer}"), &n.to_string())]).await;
        if n % 8 == 3 {
            let mut connection = begin(&store).await;
            let dropped = [message(&store, "dropped", "never")];
            store.append(&mut connection, &dropped).await.expect("messages can be appended");
            drop(connection);
        }
    }
}

/// What `confirm` does: what it names is gone, once and for all.
pub async fn confirmed_rows_are_gone_and_others_stay<H: StoreHarness>(harness: &mut H) {
    let store = harness.open().await;
    for n in 0..20 {
        commit(&store, &[message(&store, &format!("k{}", n % 5), &n.to_string())]).await;
    }
    let leases = all_lanes(&store, "relay").await;
    let (gone, left): (Vec<_>, Vec<_>) = read_all(&store)
        .await
        .into_iter()
        .partition(|row| text(row).parse::<u32>().expect("a number") % 2 == 0);
    let confirmations = confirmations(&leases, &gone);
    for _ in 0..2 {
        let lost = store.confirm(&confirmations).await.expect("rows can be confirmed");
        assert!(lost.is_empty());
    }
    let as_set = |rows: &[OutboxRow]| -> BTreeSet<String> {
        rows.iter().map(|row| text(row).to_owned()).collect()
    };
    assert_eq!(as_set(&read_all(&store).await), as_set(&left));
    assert!(store.confirm(&[]).await.expect("nothing can be confirmed").is_empty());
}

/// Rule 3: only the lane whose lease was lost is left alone.
pub async fn a_lost_lease_confirms_nothing<H: StoreHarness>(harness: &mut H) {
    let (one, other) = (harness.open().await, harness.open().await);
    let elsewhere = key_elsewhere("a");
    commit(&one, &[message(&one, "a", "a"), message(&one, &elsewhere, "b")]).await;
    let old = all_lanes(&one, "one").await;
    let rows = read_all(&one).await;
    one.release(&[lease_of(&old, lane_of("a")).clone()]).await.expect("released");
    let taken = other.acquire("outbox", LANES, 1, "other", TTL).await.expect("acquired");
    assert_eq!(taken.len(), 1);
    let lost = one.confirm(&confirmations(&old, &rows)).await.expect("rows can be confirmed");
    assert_eq!(lost, [lane_of("a")]);
    assert_eq!(texts(&read_all(&one).await), ["a"]);
    let left = read_all(&other).await;
    assert!(other.confirm(&confirmations(&taken, &left)).await.expect("confirmed").is_empty());
    assert!(read_all(&one).await.is_empty());
}

/// Rule 3.
pub async fn a_lost_lease_buries_nothing<H: StoreHarness>(harness: &mut H) {
    let (one, other) = (harness.open().await, harness.open().await);
    commit(&one, &[message(&one, "a", "a")]).await;
    let old = all_lanes(&one, "one").await;
    let row = read_all(&one).await.remove(0);
    harness.pass(TTL * 2).await;
    all_lanes(&other, "other").await;
    let answer = one.bury(lease_of(&old, row.lane), row.seq, "poison").await;
    let fenced = matches!(
        &answer,
        Err(StoreError::Fenced { scope, lane }) if scope == "outbox" && *lane == row.lane
    );
    assert!(fenced, "the lease was lost, and yet: {answer:?}");
    assert_eq!(texts(&read_all(&one).await), ["a"]);
    assert!(one.buried(10).await.expect("the buried can be listed").is_empty());
}

/// Rule 4.
pub async fn a_buried_row_is_kept_with_its_reason_and_not_read<H: StoreHarness>(harness: &mut H) {
    let store = harness.open().await;
    let poison = message(&store, "a", "poison");
    commit(&store, &[poison.clone(), message(&store, "a", "next")]).await;
    let leases = all_lanes(&store, "relay").await;
    let row = read_all(&store).await.remove(0);
    let reason = "TooLarge: 5 MiB — 'quoted'";
    store.bury(lease_of(&leases, row.lane), row.seq, reason).await.expect("it can be buried");
    assert_eq!(texts(&read_all(&store).await), ["next"]);
    drop(store);
    harness.restart().await;
    let buried = harness.open().await.buried(10).await.expect("the buried can be listed");
    let kept: Vec<_> = buried.iter().map(|b| (&b.message, b.reason.as_str())).collect();
    assert_eq!(kept, [(&poison, reason)]);
}

/// Rule 5.
pub async fn a_delayed_row_is_read_when_it_is_due<H: StoreHarness>(harness: &mut H) {
    let store = harness.open().await;
    let now = store.now();
    let wait = Duration::from_secs(60);
    let delayed = message(&store, "a", "delayed").delayed(now, wait);
    commit(&store, &[delayed, message(&store, "a", "at once")]).await;
    assert_eq!(texts(&read_all(&store).await), ["at once"]);
    let lane = [Position { lane: lane_of("a"), after: None }];
    let early = store.read(&lane, now + wait - Duration::from_millis(1), 10).await.expect("read");
    assert_eq!(texts(&early), ["at once"]);
    let due = store.read(&lane, now + wait, 10).await.expect("read");
    assert_eq!(texts(&due), ["delayed", "at once"], "at its position");
    let behind = [Position { lane: lane_of("a"), after: due.first().map(|row| row.seq) }];
    let after = store.read(&behind, now + wait, 10).await.expect("read");
    assert_eq!(texts(&after), ["at once"]);
    let leases = all_lanes(&store, "relay").await;
    store.confirm(&confirmations(&leases, &due)).await.expect("delayed rows can be confirmed");
    assert!(store.read(&lane, now + wait, 10).await.expect("read").is_empty());
}

/// What `backlog` says.
pub async fn the_backlog_counts_what_waits<H: StoreHarness>(harness: &mut H) {
    let store = harness.open().await;
    assert_eq!(store.backlog().await.expect("the backlog is known"), (0, None));
    let first = message(&store, "a", "1");
    commit(&store, std::slice::from_ref(&first)).await;
    harness.pass(Duration::from_secs(2)).await;
    let delayed = message(&store, "b", "2").delayed(store.now(), Duration::from_secs(60));
    commit(&store, &[delayed]).await;
    let (count, oldest) = store.backlog().await.expect("the backlog is known");
    assert_eq!(count, 2);
    let oldest = oldest.expect("something waits");
    assert!(first.time.since(oldest) < Duration::from_millis(2), "{oldest:?}");
    assert!(oldest.since(first.time) < Duration::from_millis(1_500), "{oldest:?}");
}

/// Rule 6.
pub async fn the_ledger_counts_each_message_once<H: StoreHarness>(harness: &mut H) {
    let store = harness.open().await;
    let other_kind = |body: &str| Message {
        kind: "test.Cancelled".into(),
        topic: "refunds".into(),
        ..message(&store, "a", body)
    };
    for n in 0..6 {
        commit(&store, &[message(&store, "a", &n.to_string()), other_kind("x")]).await;
    }
    let mut connection = begin(&store).await;
    store.append(&mut connection, &[other_kind("dropped")]).await.expect("appended");
    drop(connection);
    let leases = all_lanes(&store, "relay").await;
    let rows = read_all(&store).await;
    let placed: Vec<_> = rows.into_iter().filter(|row| row.message.topic == "orders").collect();
    for _ in 0..2 {
        let confirmations = confirmations(&leases, &placed[..3]);
        store.confirm(&confirmations).await.expect("rows can be confirmed");
        let lease = lease_of(&leases, placed[3].lane);
        // Asked again, the row is gone already.
        store.bury(lease, placed[3].seq, "poison").await.expect("a row can be buried twice");
    }
    drop(store);
    harness.restart().await;
    let mut sent = harness.open().await.sent().await.expect("the ledger can be read");
    sent.sort_by(|a, b| a.topic.cmp(&b.topic));
    let line = |topic: &str, kind: &str, waiting, buried| SentCount {
        topic: topic.into(),
        kind: kind.into(),
        committed: 6,
        waiting,
        buried,
    };
    assert_eq!(
        sent,
        [line("orders", "test.Placed", 2, 1), line("refunds", "test.Cancelled", 6, 0)]
    );
}
