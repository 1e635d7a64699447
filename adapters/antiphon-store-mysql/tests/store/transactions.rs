//! What the store promises of transactions beyond its ports: order, locks, sizes, partitions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use antiphon_core::{Code, MessageId, Status, Timestamp};
use antiphon_messaging::Message;
use antiphon_outbox::{
    CallStore, CommitError, Database as Outbox, InboxEntry, InboxStore, LeaseStore, OutboxStore,
    Position, Store, StoreError, StoredCall, outbox_lane,
};
use antiphon_store_mysql::{Migration, MysqlStore, Settings};
use sqlx::{Connection as _, Row};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::database::{
    Database, FAR, confirm_all, emit, message, message_with, read_all, read_rows,
};

const DAY: Duration = Duration::from_secs(86_400);

async fn with_orders(store: &MysqlStore) {
    let orders = "CREATE TABLE orders (id INT PRIMARY KEY, number INT NOT NULL DEFAULT 0); \
                  INSERT INTO orders (id) VALUES (1), (2)";
    store.migrate("orders", &[Migration::new("0001-orders", orders)]).await.unwrap();
}

async fn numbers(store: &MysqlStore) -> Vec<i32> {
    sqlx::query_scalar("SELECT number FROM orders ORDER BY id")
        .fetch_all(store.reader())
        .await
        .unwrap()
}

#[tokio::test]
async fn business_rows_savepoints_and_messages_are_one_transaction() {
    let database = Database::new();
    let store = database.open().await;
    with_orders(&store).await;

    let mut connection = store.begin().await.unwrap();
    sqlx::query("UPDATE orders SET number = 7").execute(&mut *connection).await.unwrap();
    store.append(&mut connection, &[message("a"), message("b")]).await.unwrap();
    drop(connection);
    assert!(read_all(&store).await.is_empty());

    let mut connection = store.begin().await.unwrap();
    let mut savepoint = connection.begin().await.unwrap();
    sqlx::query("UPDATE orders SET number = 8").execute(&mut *savepoint).await.unwrap();
    savepoint.rollback().await.unwrap();
    let mut savepoint = connection.begin().await.unwrap();
    sqlx::query("UPDATE orders SET number = 1 WHERE id = ?")
        .bind(1)
        .execute(&mut *savepoint)
        .await
        .unwrap();
    savepoint.commit().await.unwrap();
    let (first, second) = (message("a"), message("a"));
    store.append(&mut connection, &[first.clone(), second.clone()]).await.unwrap();
    store.commit(connection).await.unwrap();
    assert_eq!(read_all(&store).await, [first, second]);
    assert_eq!(numbers(&store).await, [1, 0]);
}

#[tokio::test]
async fn positions_are_not_used_twice_when_the_outbox_was_empty_in_between() {
    let database = Database::new();
    let store = database.open().await;
    emit(&store, &[message("a"), message("a")]).await;
    let last = read_rows(&store).await[1].seq;
    assert_eq!(confirm_all(&store, "one").await, 2);
    assert_eq!(store.backlog().await.unwrap(), (0, None));
    emit(&store, &[message("a")]).await;
    let after = [Position { lane: outbox_lane(&message("a")), after: Some(last) }];
    assert_eq!(store.read(&after, store.now(), 10).await.unwrap().len(), 1);
    let sent = store.sent().await.unwrap();
    assert_eq!((sent[0].committed, sent[0].waiting), (3, 1));
}

/// The rule for transactions that lock no common row: whoever reads never sees a row of a key whose
/// position is below one that it has seen before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_of_one_key_without_a_common_lock_are_read_in_the_order_of_their_commits() {
    const WRITERS: usize = 6;
    const EACH: usize = 40;
    let database = Database::new();
    let store = database.open().await;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0..EACH {
                let mut connection = store.begin().await.unwrap();
                let others = format!("other-{writer}");
                let batch = [message(&others), message("shared")];
                store.append(&mut connection, &batch).await.unwrap();
                // Every fifth one is undone: its number is a gap.
                if n % 5 == 4 {
                    drop(connection);
                } else {
                    store.commit(connection).await.unwrap();
                }
            }
        });
    }
    let lane = [Position { lane: outbox_lane(&message("shared")), after: None }];
    let mut newest = None;
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < WRITERS * EACH * 4 / 5 {
        let rows = store.read(&lane, store.now(), 100_000).await.unwrap();
        let rows = rows.iter().filter(|row| row.message.key == "shared");
        let mut fresh: Vec<_> = rows.map(|row| row.seq).filter(|seq| !seen.contains(seq)).collect();
        fresh.sort_unstable();
        if let (Some(first), Some(newest)) = (fresh.first(), newest) {
            assert!(*first > newest, "{first:?} was committed after {newest:?} had been read");
        }
        newest = fresh.last().copied().or(newest);
        seen.extend(fresh);
        if writers.is_empty() {
            assert_eq!(seen.len(), WRITERS * EACH * 4 / 5, "nothing is lost");
        }
        while let Some(done) = writers.try_join_next() {
            done.unwrap();
        }
    }
}

#[tokio::test]
async fn delayed_rows_do_not_stand_in_the_way_of_others() {
    let database = Database::new();
    let store = database.open().await;
    let later = || Message { not_before: Some(FAR), ..message("a") };
    let many: Vec<Message> = (0..300).map(|_| later()).collect();
    emit(&store, &many).await;
    let now = [message("a"), later(), message("a")];
    emit(&store, &now).await;
    assert_eq!(read_all(&store).await, [now[0].clone(), now[2].clone()]);
    let lane = [Position { lane: outbox_lane(&now[0]), after: None }];
    let due = store.read(&lane, FAR, 10).await.unwrap();
    assert_eq!(due.len(), 10);
    assert_eq!(due[0].message, many[0], "the oldest first");
    assert_eq!(store.read(&lane, FAR, 1_000).await.unwrap().len(), 303);
    assert_eq!(confirm_all(&store, "relay").await, 2);
    assert_eq!(store.backlog().await.unwrap().0, 301);
}

#[tokio::test]
async fn a_broken_outbox_row_is_put_aside_and_blocks_nobody() {
    let database = Database::new();
    let store = database.open().await;
    emit(&store, &[message("a"), message("a")]).await;
    sqlx::raw_sql("UPDATE antiphon_outbox SET head = x'ff00' ORDER BY seq LIMIT 1")
        .execute(store.reader())
        .await
        .unwrap();
    assert_eq!(read_all(&store).await.len(), 1);
    assert_eq!(read_all(&store).await.len(), 1);
    let buried = store.buried(10).await.unwrap();
    assert_eq!(buried.len(), 1);
    assert!(buried[0].reason.starts_with("decode: "), "{}", buried[0].reason);
    assert_eq!(buried[0].message.body, "body");
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_and_a_large_one_is_not() {
    let database = Database::new();
    let store = database.open().await;
    let large = message_with("a", vec![7; 5 << 20]);
    let batch = [message("a"), large.clone(), message("b"), message_with("c", vec![0; 2 << 20])];
    emit(&store, &batch).await;
    let mut read = read_all(&store).await;
    assert_eq!(read.len(), 4);
    read.retain(|message| message.id == large.id);
    assert_eq!(read, [large]);

    let packet: u64 =
        sqlx::query_scalar("SELECT @@max_allowed_packet").fetch_one(store.reader()).await.unwrap();
    let too_large = message_with("a", vec![0; usize::try_from(packet / 2).unwrap()]);
    let mut connection = store.begin().await.unwrap();
    let error = store.append(&mut connection, &[too_large]).await.unwrap_err();
    assert!(error.to_string().contains("max_allowed_packet"), "{error}");
    // The connection has not suffered.
    sqlx::query("SELECT 1").execute(&mut *connection).await.unwrap();
}

#[tokio::test]
async fn a_deadlock_is_busy_for_one_and_done_again() {
    let database = Database::new();
    let store = database.open().await;
    with_orders(&store).await;
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let deadlocks = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for (first, second) in [(1, 2), (2, 1)] {
        let (store, both, deadlocks) = (store.clone(), Arc::clone(&both), Arc::clone(&deadlocks));
        workers.spawn(async move {
            for attempt in 0.. {
                let mut connection = store.begin().await.unwrap();
                let add = "UPDATE orders SET number = number + 1 WHERE id = ?";
                sqlx::query(add).bind(first).execute(&mut *connection).await.unwrap();
                if attempt == 0 {
                    both.wait().await;
                }
                if let Err(error) = sqlx::query(add).bind(second).execute(&mut *connection).await {
                    assert!(error.to_string().contains("1213"), "{error}");
                    deadlocks.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                store.append(&mut connection, &[message("a")]).await.unwrap();
                store.commit(connection).await.unwrap();
                return;
            }
        });
    }
    timeout(Duration::from_secs(20), workers.join_all()).await.unwrap();
    assert!(deadlocks.load(Ordering::Relaxed) > 0, "the fault bit");
    assert_eq!(numbers(&store).await, [2, 2]);
    assert_eq!(read_all(&store).await.len(), 2);
}

/// Work that fails for a deadlock, whatever it makes of the error, is done again by `transact`.
#[tokio::test]
async fn transact_does_work_again_that_met_other_work() {
    let database = Database::new();
    let store = database.open().await;
    with_orders(&store).await;
    let outbox = Outbox::new("orders", store.clone());
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let runs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for ids in [[1, 2], [2, 1]] {
        let (outbox, both, runs) = (outbox.clone(), Arc::clone(&both), Arc::clone(&runs));
        workers.spawn(async move {
            let mut has_waited = false;
            outbox
                .transact(|mut tx| {
                    let (both, runs) = (Arc::clone(&both), Arc::clone(&runs));
                    let waits = !std::mem::replace(&mut has_waited, true);
                    Box::pin(async move {
                        runs.fetch_add(1, Ordering::Relaxed);
                        for id in ids {
                            sqlx::query("UPDATE orders SET number = number + 1 WHERE id = ?")
                                .bind(id)
                                .execute(tx.sql())
                                .await
                                .map_err(|error| Status::internal(error.to_string()))?;
                            if waits && id == ids[0] {
                                both.wait().await;
                            }
                        }
                        Ok::<_, Status>(())
                    })
                })
                .await
        });
    }
    for done in timeout(Duration::from_secs(20), workers.join_all()).await.unwrap() {
        done.unwrap();
    }
    assert!(runs.load(Ordering::Relaxed) > 2, "the fault bit");
    assert_eq!(numbers(&store).await, [2, 2]);

    runs.store(0, Ordering::Relaxed);
    let mistaken: Result<(), Status> = outbox
        .transact(|mut tx| {
            let runs = &runs;
            Box::pin(async move {
                runs.fetch_add(1, Ordering::Relaxed);
                let wrong = sqlx::query("SELECT nothing FROM nowhere").execute(tx.sql()).await;
                wrong.map(drop).map_err(|error| Status::internal(error.to_string()))
            })
        })
        .await;
    assert_eq!(mistaken.unwrap_err().code(), Code::Internal);
    assert_eq!(runs.load(Ordering::Relaxed), 1, "a mistake is not repeated");
}

/// What the server has undone is never committed by halves, even when the error was ignored.
#[tokio::test]
async fn a_transaction_whose_deadlock_was_ignored_does_not_commit() {
    let database = Database::new();
    let store = database.open().await;
    with_orders(&store).await;
    let mut one = store.begin().await.unwrap();
    let mut other = store.begin().await.unwrap();
    let add = "UPDATE orders SET number = number + 1 WHERE id = ?";
    sqlx::query(add).bind(1).execute(&mut *one).await.unwrap();
    sqlx::query(add).bind(2).execute(&mut *other).await.unwrap();
    let (first, second) =
        tokio::join!(async { sqlx::query(add).bind(2).execute(&mut *one).await.is_ok() }, async {
            sqlx::query(add).bind(1).execute(&mut *other).await.is_ok()
        },);
    assert_ne!(first, second, "one of them is the victim");
    let (mut victim, winner) = if first { (other, one) } else { (one, other) };
    store.commit(winner).await.unwrap();
    sqlx::query("UPDATE orders SET number = 99").execute(&mut *victim).await.unwrap();
    store.append(&mut victim, &[message("a")]).await.unwrap();
    let error = store.commit(victim).await.unwrap_err();
    assert!(matches!(error, CommitError::RolledBack(StoreError::Failed { .. })), "{error}");
    assert!(error.to_string().contains("deadlock"), "{error}");
    assert_eq!(numbers(&store).await, [1, 1]);
    assert!(read_all(&store).await.is_empty());
}

#[tokio::test]
async fn a_statement_that_commits_by_itself_is_found_out() {
    let database = Database::new();
    let store = database.open().await;
    with_orders(&store).await;
    let mut connection = store.begin().await.unwrap();
    sqlx::query("UPDATE orders SET number = 5").execute(&mut *connection).await.unwrap();
    sqlx::raw_sql("CREATE TABLE sneaky (id INT)").execute(&mut *connection).await.unwrap();
    store.append(&mut connection, &[message("a")]).await.unwrap();
    let error = store.commit(connection).await.unwrap_err();
    assert!(error.to_string().contains("commits by itself"), "{error}");
    assert!(read_all(&store).await.is_empty());
}

#[tokio::test]
async fn waiting_for_a_row_ends_as_busy() {
    let database = Database::new();
    let settings = Settings { lock_timeout: Duration::from_secs(1), ..Settings::default() };
    let store = database.open_with(settings).await;
    let incoming = message("a");
    let mut first = store.begin().await.unwrap();
    assert_eq!(store.enter(&mut first, "c", &[&incoming]).await.unwrap(), [InboxEntry::New]);
    let mut second = store.begin().await.unwrap();
    let error = store.enter(&mut second, "c", &[&incoming]).await.unwrap_err();
    assert!(error.is_busy(), "{error}");
    drop(second);

    let call = StoredCall { request_hash: 1, answer: "x".into() };
    store.remember(&mut first, "Place", "k", &call).await.unwrap();
    store.commit(first).await.unwrap();
    let mut late = store.begin().await.unwrap();
    store.remember(&mut late, "Place", "k", &call).await.unwrap();
    let error = store.commit(late).await.unwrap_err();
    assert!(error.is_busy(), "somebody has answered already: {error}");
}

#[tokio::test]
async fn a_turn_that_never_comes_is_busy_and_a_dropped_one_comes_back() {
    let database = Database::new();
    let settings = Settings {
        connections_max: 1,
        acquire_timeout: Duration::from_millis(100),
        ..Settings::default()
    };
    let store = database.open_with(settings).await;
    let held = store.begin().await.unwrap();
    assert!(store.begin().await.is_err_and(|error| error.is_busy()));
    drop(held);
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match store.begin().await {
            Ok(connection) => break store.commit(connection).await.unwrap(),
            Err(error) => assert!(error.is_busy() && Instant::now() < until, "{error}"),
        }
    }
}

#[tokio::test]
async fn work_that_is_given_up_in_the_middle_leaves_nothing_behind() {
    let database = Database::new();
    let settings = Settings { connections_max: 2, ..Settings::default() };
    let store = database.open_with(settings).await;
    with_orders(&store).await;
    for delay in 0..30_u64 {
        let work = async {
            let mut connection = store.begin().await.unwrap();
            let add = "UPDATE orders SET number = number + 1 WHERE id = ?";
            sqlx::query(add).bind(1).execute(&mut *connection).await.unwrap();
            let sleep = "SELECT SLEEP(0.01), id FROM orders WHERE number > ?";
            sqlx::query(sleep).bind(-1).fetch_all(&mut *connection).await.unwrap();
            // Never committed.
        };
        let _ = timeout(Duration::from_micros(delay * 700), work).await;
    }
    let outbox = Outbox::new("orders", store.clone());
    for _ in 0..6 {
        outbox
            .transact(|mut tx| {
                Box::pin(async move {
                    let rows = sqlx::query("SELECT id, number FROM orders ORDER BY id FOR UPDATE")
                        .fetch_all(tx.sql())
                        .await
                        .unwrap();
                    let numbers: Vec<(i32, i32)> =
                        rows.iter().map(|row| (row.get(0), row.get(1))).collect();
                    assert_eq!(numbers, [(1, 0), (2, 0)]);
                    Ok::<_, CommitError>(())
                })
            })
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn whole_days_of_the_inbox_are_forgotten_with_their_partition() {
    let database = Database::new();
    let store = database.open().await;
    let now = store.now();
    let aged = |age: Duration| Message { id: MessageId::new(now - age), ..message("k") };
    // The last one meets the partition of the first: 16 days later.
    let messages: Vec<Message> = [30, 20, 15, 14].map(|days| aged(days * DAY)).into();
    for message in &messages {
        let mut connection = store.begin().await.unwrap();
        assert_eq!(store.enter(&mut connection, "c", &[message]).await.unwrap(), [InboxEntry::New]);
        store.commit(connection).await.unwrap();
    }
    // While a transaction works with the inbox, nobody waits behind the forgetting for long.
    let fresh = message("k");
    let mut working = store.begin().await.unwrap();
    store.enter(&mut working, "c", &[&fresh]).await.unwrap();
    let began = Instant::now();
    let forgotten = store.expire(now - 17 * DAY).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(forgotten, 1, "the day that shares a partition is deleted row by row");
    store.commit(working).await.unwrap();
    assert_eq!(store.expire(now - 17 * DAY).await.unwrap(), 1);
    for (message, expected) in messages.iter().zip([
        InboxEntry::BeyondHorizon,
        InboxEntry::BeyondHorizon,
        InboxEntry::Duplicate,
        InboxEntry::Duplicate,
    ]) {
        let mut connection = store.begin().await.unwrap();
        assert_eq!(store.enter(&mut connection, "c", &[message]).await.unwrap(), [expected]);
    }
    assert_eq!(store.handled().await.unwrap()[0].done, 5);
}

/// The horizon moves while consumers are at work: nothing that was handled is handled again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_new_twice_while_the_horizon_moves() {
    let database = Database::new();
    let (store, other) = (database.open().await, database.open().await);
    let now = store.now();
    let messages: Vec<Message> = (0..120_u32)
        .map(|n| Message { id: MessageId::new(now - DAY * (n % 12)), ..message("k") })
        .collect();
    let stopped = Arc::new(AtomicBool::new(false));
    let expiring = tokio::spawn({
        let stopped = Arc::clone(&stopped);
        async move {
            let mut days = 12;
            while !stopped.load(Ordering::Relaxed) {
                days = u32::max(days - 1, 2);
                other.expire(now - DAY * days).await.unwrap();
            }
        }
    });
    let mut new = std::collections::BTreeMap::new();
    for _ in 0..3 {
        for batch in messages.chunks(7) {
            let batch: Vec<&Message> = batch.iter().collect();
            let mut connection = store.begin().await.unwrap();
            let entries = store.enter(&mut connection, "c", &batch).await.unwrap();
            store.commit(connection).await.unwrap();
            for (message, entry) in batch.iter().zip(entries) {
                if entry == InboxEntry::New {
                    *new.entry(message.id).or_insert(0) += 1;
                }
            }
        }
    }
    stopped.store(true, Ordering::Relaxed);
    expiring.await.unwrap();
    assert!(new.values().all(|count| *count == 1), "{new:?}");
    assert!(new.len() >= 20, "the youngest are new: {}", new.len());
}

#[tokio::test]
async fn many_confirm_and_the_counts_stay_exact() {
    let database = Database::new();
    let store = database.open().await;
    let messages: Vec<Message> = (0..5_000).map(|n| message(&format!("k{}", n % 50))).collect();
    emit(&store, &messages).await;
    assert_eq!(confirm_all(&store, "relay").await, 5_000);
    let sent = store.sent().await.unwrap();
    assert_eq!((sent[0].committed, sent[0].waiting, sent[0].buried), (5_000, 0, 0));
    let instances = store.instances("outbox", "relay", Duration::from_secs(5)).await.unwrap();
    assert_eq!(instances, 1);
    assert!(store.now() > Timestamp::EPOCH);
}
