//! `Store`: all or nothing, visible at the commit, durable after it.

use std::time::Duration;

use antiphon_outbox::{CallStore, InboxEntry, InboxStore, OutboxStore, Store, StoredCall};
use tokio::time::timeout;

use super::{PATIENCE, StoreHarness, StoreOf, begin, message, read_all, texts};

/// Rule 1.
pub async fn a_commit_shows_everything_at_once<H: StoreHarness>(harness: &mut H) {
    let (store, other) = (harness.open().await, harness.open().await);
    let mut connection = begin(&store).await;
    H::add(&store, &mut connection, "a", 1).await.expect("rows can be written");
    H::add(&store, &mut connection, "b", 2).await.expect("rows can be written");
    let message = message(&store, "k", "1");
    store.append(&mut connection, &[message]).await.expect("messages can be appended");
    assert_eq!((H::number(&other, "a").await, H::number(&other, "b").await), (0, 0));
    assert!(read_all(&other).await.is_empty());
    store.commit(connection).await.expect("the transaction can be committed");
    assert_eq!((H::number(&other, "a").await, H::number(&other, "b").await), (1, 2));
    assert_eq!(texts(&read_all(&other).await), ["1"]);
}

/// Rule 2.
pub async fn a_dropped_transaction_leaves_nothing<H: StoreHarness>(harness: &mut H) {
    let (store, other) = (harness.open().await, harness.open().await);
    let message = message(&store, "k", "1");
    let call = StoredCall { request_hash: 1, answer: "x".into() };
    let mut connection = begin(&store).await;
    H::add(&store, &mut connection, "a", 1).await.expect("rows can be written");
    store.enter(&mut connection, "c", &[&message]).await.expect("the inbox can be entered");
    store.remember(&mut connection, "m", "k", &call).await.expect("answers can be stored");
    store.append(&mut connection, &[message]).await.expect("messages can be appended");
    drop(connection);
    // The next transaction sees that the rollback is done.
    let mut connection = begin(&other).await;
    assert_eq!(other.recall(&mut connection, "m", "k").await.expect("answers can be found"), None);
    drop(connection);
    assert_eq!(H::number(&other, "a").await, 0);
    assert!(read_all(&other).await.is_empty());
    assert!(other.handled().await.expect("the ledger can be read").iter().all(|c| c.done == 0));
}

/// Rule 3.
pub async fn what_is_committed_survives_a_restart<H: StoreHarness>(harness: &mut H) {
    let store = harness.open().await;
    let message = message(&store, "k", "1");
    let call = StoredCall { request_hash: 7, answer: "answer".into() };
    let mut connection = begin(&store).await;
    H::add(&store, &mut connection, "a", 5).await.expect("rows can be written");
    store.enter(&mut connection, "c", &[&message]).await.expect("the inbox can be entered");
    store.remember(&mut connection, "m", "k", &call).await.expect("answers can be stored");
    store
        .append(&mut connection, std::slice::from_ref(&message))
        .await
        .expect("messages can be appended");
    store.commit(connection).await.expect("the transaction can be committed");
    drop(store);
    harness.restart().await;
    let store = harness.open().await;
    assert_eq!(H::number(&store, "a").await, 5);
    assert_eq!(read_all(&store).await.first().map(|row| &row.message), Some(&message));
    let mut connection = begin(&store).await;
    assert_eq!(store.recall(&mut connection, "m", "k").await.expect("found"), Some(call));
    let entry = store.enter(&mut connection, "c", &[&message]).await.expect("entered");
    assert_eq!(entry, [InboxEntry::Duplicate]);
}

/// Rules 1 and 4, over several processes at once: what is busy is refused and can be done again.
pub async fn writers_of_one_row_lose_no_update<H: StoreHarness>(harness: &mut H) {
    const WRITERS: i64 = 4;
    const UPDATES: i64 = 25;
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        writers.push(tokio::spawn(add_often::<H>(harness.open().await, UPDATES)));
    }
    for writer in writers {
        let done = timeout(PATIENCE, writer).await.expect("nobody waits for ever");
        done.expect("no writer fails");
    }
    assert_eq!(H::number(&harness.open().await, "shared").await, WRITERS * UPDATES);
}

async fn add_often<H: StoreHarness>(store: StoreOf<H>, count: i64) {
    let mut done = 0;
    while done < count {
        let mut connection = begin(&store).await;
        if H::add(&store, &mut connection, "shared", 1).await.is_err() {
            drop(connection);
            tokio::time::sleep(Duration::from_millis(3)).await;
            continue;
        }
        match store.commit(connection).await {
            Ok(()) => done += 1,
            Err(error) => assert!(error.is_busy(), "nothing but a conflict: {error}"),
        }
    }
}
