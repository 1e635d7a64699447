//! `InboxStore`: each message takes effect once per consumer, and old ones never.

use std::time::Duration;

use antiphon_core::MessageId;
use antiphon_messaging::Message;
use antiphon_outbox::{HandledCount, InboxEntry, InboxStore, Store};
use tokio::time::timeout;

use super::{PATIENCE, StoreHarness, StoreOf, begin, message, message_aged};

const DAY: Duration = Duration::from_secs(86_400);

/// Enters one message and commits.
async fn enter<S: InboxStore>(store: &S, consumer: &str, message: &Message) -> InboxEntry {
    let mut connection = begin(store).await;
    let entries = store.enter(&mut connection, consumer, &[message]).await.expect("entered");
    assert_eq!(entries.len(), 1, "an answer for each message");
    store.commit(connection).await.expect("the transaction can be committed");
    entries[0]
}

/// Rule 2, one after the other.
pub async fn a_message_is_new_once_per_consumer<H: StoreHarness>(harness: &mut H) {
    let (store, other) = (harness.open().await, harness.open().await);
    let (one, two) = (message(&store, "k", "1"), message(&store, "k", "2"));
    assert_eq!(enter(&store, "mail", &one).await, InboxEntry::New);
    assert_eq!(enter(&other, "mail", &one).await, InboxEntry::Duplicate);
    assert_eq!(enter(&store, "mail", &two).await, InboxEntry::New);
    assert_eq!(enter(&other, "points", &one).await, InboxEntry::New);
    drop((store, other));
    harness.restart().await;
    let store = harness.open().await;
    assert_eq!(enter(&store, "points", &one).await, InboxEntry::Duplicate);
}

/// Rule 1.
pub async fn an_entry_is_undone_with_its_transaction<H: StoreHarness>(harness: &mut H) {
    let store = harness.open().await;
    let message = message(&store, "k", "1");
    for _ in 0..3 {
        let mut connection = begin(&store).await;
        let entries = store.enter(&mut connection, "c", &[&message]).await.expect("entered");
        assert_eq!(entries, [InboxEntry::New]);
        drop(connection);
    }
    assert_eq!(enter(&store, "c", &message).await, InboxEntry::New);
}

/// Rule 2, over several processes at once; every third first handler fails.
pub async fn of_concurrent_duplicates_one_is_new<H: StoreHarness>(harness: &mut H) {
    const MESSAGES: usize = 10;
    let store = harness.open().await;
    let messages: Vec<_> = (0..MESSAGES).map(|n| message(&store, "k", &n.to_string())).collect();
    let mut workers = Vec::new();
    for worker in 0..4 {
        let work = handle_all::<H>(harness.open().await, messages.clone(), worker);
        workers.push(tokio::spawn(work));
    }
    for worker in workers {
        let done = timeout(PATIENCE, worker).await.expect("nobody waits for ever");
        done.expect("no worker fails");
    }
    for n in 0..MESSAGES {
        assert_eq!(H::number(&store, &format!("effect-{n}")).await, 1, "message {n}");
    }
}

async fn handle_all<H: StoreHarness>(store: StoreOf<H>, messages: Vec<Message>, worker: usize) {
    for (n, message) in messages.iter().enumerate() {
        let mut fails = (n + worker).is_multiple_of(3);
        loop {
            let mut connection = begin(&store).await;
            let Ok(entries) = store.enter(&mut connection, "c", &[message]).await else {
                drop(connection);
                tokio::time::sleep(Duration::from_millis(3)).await;
                continue;
            };
            if entries == [InboxEntry::Duplicate] {
                break;
            }
            assert_eq!(entries, [InboxEntry::New]);
            let effect = format!("effect-{n}");
            let added = H::add(&store, &mut connection, &effect, 1).await;
            if std::mem::replace(&mut fails, false) || added.is_err() {
                drop(connection);
            } else if store.commit(connection).await.is_ok() {
                break;
            }
        }
    }
}

/// What `enter` says of a batch.
pub async fn a_batch_is_answered_in_order_and_knows_its_own_duplicates<H: StoreHarness>(
    harness: &mut H,
) {
    let store = harness.open().await;
    let seen = message(&store, "k", "seen");
    assert_eq!(enter(&store, "c", &seen).await, InboxEntry::New);
    store.expire(store.now() - DAY).await.expect("the horizon can be moved");
    let (a, b) = (message(&store, "k", "a"), message(&store, "k", "b"));
    let old = message_aged(store.now(), 2 * DAY, "k", "old");
    let mut connection = begin(&store).await;
    let entries = store
        .enter(&mut connection, "c", &[&a, &seen, &old, &a, &b])
        .await
        .expect("a batch can be entered");
    let (new, again) = (InboxEntry::New, InboxEntry::Duplicate);
    assert_eq!(entries, [new, again, InboxEntry::BeyondHorizon, again, new]);
    assert_eq!(store.enter(&mut connection, "c", &[]).await.expect("entered"), []);
    store.commit(connection).await.expect("the transaction can be committed");
    assert_eq!(enter(&store, "c", &b).await, again);
}

/// Rule 3.
pub async fn what_is_beyond_the_horizon_is_refused_whether_seen_or_not<H: StoreHarness>(
    harness: &mut H,
) {
    let store = harness.open().await;
    let now = store.now();
    let seen = message_aged(now, 8 * DAY, "k", "seen");
    let unseen = message_aged(now, 8 * DAY, "k", "unseen");
    let young = message_aged(now, 6 * DAY, "k", "young");
    assert_eq!(enter(&store, "c", &seen).await, InboxEntry::New);
    assert_eq!(enter(&store, "c", &young).await, InboxEntry::New);
    assert_eq!(store.expire(now - 7 * DAY).await.expect("moved"), 1, "one was forgotten");
    drop(store);
    harness.restart().await;
    let store = harness.open().await;
    assert_eq!(enter(&store, "c", &seen).await, InboxEntry::BeyondHorizon);
    assert_eq!(enter(&store, "c", &unseen).await, InboxEntry::BeyondHorizon);
    assert_eq!(enter(&store, "c", &young).await, InboxEntry::Duplicate);
    assert_eq!(enter(&store, "c", &message(&store, "k", "new")).await, InboxEntry::New);
}

/// Rule 3.
pub async fn the_horizon_never_moves_back<H: StoreHarness>(harness: &mut H) {
    let (store, other) = (harness.open().await, harness.open().await);
    let now = store.now();
    store.expire(now - DAY).await.expect("the horizon can be moved");
    other.expire(now - 7 * DAY).await.expect("moving it back is no mistake");
    let old = message_aged(now, 3 * DAY, "k", "old");
    assert_eq!(enter(&store, "c", &old).await, InboxEntry::BeyondHorizon);
    assert_eq!(enter(&other, "c", &old).await, InboxEntry::BeyondHorizon);
}

/// Rule 3.
pub async fn an_id_without_a_time_is_beyond_every_horizon<H: StoreHarness>(harness: &mut H) {
    let store = harness.open().await;
    // Versions 1, 4 and 6: the first and the last hold a time, but do not sort by it.
    for bytes in [[0x11; 16], [0x44; 16], [0x66; 16], [0xff; 16]] {
        let id = MessageId::from_bytes(bytes);
        let timeless = Message { id, ..message(&store, "k", "timeless") };
        assert_eq!(enter(&store, "c", &timeless).await, InboxEntry::BeyondHorizon, "{id}");
    }
}

/// Rule 4.
pub async fn the_ledger_counts_what_was_committed<H: StoreHarness>(harness: &mut H) {
    let store = harness.open().await;
    let now = store.now();
    let aged: Vec<_> = (0..3).map(|n| message_aged(now, 8 * DAY, "k", &n.to_string())).collect();
    let other = Message { kind: "test.Cancelled".into(), ..message(&store, "k", "x") };
    for message in &aged {
        assert_eq!(enter(&store, "mail", message).await, InboxEntry::New);
    }
    assert_eq!(enter(&store, "mail", &aged[0]).await, InboxEntry::Duplicate);
    assert_eq!(enter(&store, "mail", &aged[0]).await, InboxEntry::Duplicate);
    assert_eq!(enter(&store, "mail", &other).await, InboxEntry::New);
    assert_eq!(enter(&store, "points", &aged[1]).await, InboxEntry::New);
    let mut connection = begin(&store).await;
    let undone = message(&store, "k", "undone");
    store.enter(&mut connection, "mail", &[&undone, &aged[2]]).await.expect("entered");
    drop(connection);
    assert_eq!(store.expire(now - 7 * DAY).await.expect("moved"), 4);
    assert_eq!(enter(&store, "mail", &aged[0]).await, InboxEntry::BeyondHorizon);
    drop(store);
    harness.restart().await;
    let mut handled = harness.open().await.handled().await.expect("the ledger can be read");
    handled.sort_by(|a, b| (&a.consumer, &a.kind).cmp(&(&b.consumer, &b.kind)));
    let line = |consumer: &str, kind: &str, done, duplicates| HandledCount {
        consumer: consumer.into(),
        topic: "orders".into(),
        kind: kind.into(),
        done,
        duplicates,
    };
    assert_eq!(
        handled,
        [
            line("mail", "test.Cancelled", 1, 0),
            line("mail", "test.Placed", 3, 2),
            line("points", "test.Placed", 1, 0),
        ]
    );
}
