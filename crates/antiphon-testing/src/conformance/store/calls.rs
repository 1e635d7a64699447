//! `CallStore`: one answer per method and key.

use std::time::Duration;

use antiphon_outbox::{CallStore, Store, StoredCall};
use tokio::time::timeout;

use super::{PATIENCE, StoreHarness, StoreOf, begin};

fn answer(text: &str) -> StoredCall {
    StoredCall { request_hash: u64::MAX - 1, answer: text.to_owned().into() }
}

async fn remember<S: CallStore>(store: &S, method: &str, key: &str, call: &StoredCall) {
    let mut connection = begin(store).await;
    store.remember(&mut connection, method, key, call).await.expect("answers can be stored");
    store.commit(connection).await.expect("the transaction can be committed");
}

async fn recall<S: CallStore>(store: &S, method: &str, key: &str) -> Option<StoredCall> {
    let mut connection = begin(store).await;
    store.recall(&mut connection, method, key).await.expect("answers can be found")
}

/// What `recall` finds.
pub async fn an_answer_is_found_under_its_method_and_key<H: StoreHarness>(harness: &mut H) {
    let (store, other) = (harness.open().await, harness.open().await);
    assert_eq!(recall(&store, "Place", "k").await, None);
    let empty = StoredCall { request_hash: 0, answer: bytes::Bytes::new() };
    remember(&store, "Place", "k", &answer("one")).await;
    remember(&store, "Cancel", "k", &empty).await;
    assert_eq!(recall(&other, "Place", "k").await, Some(answer("one")));
    assert_eq!(recall(&other, "Cancel", "k").await, Some(empty));
    assert_eq!(recall(&other, "Place", "K").await, None, "keys are taken as they are");
    assert_eq!(recall(&other, "Place", "k ").await, None, "keys are taken as they are");
}

/// Rule 1.
pub async fn an_answer_is_undone_with_its_transaction<H: StoreHarness>(harness: &mut H) {
    let store = harness.open().await;
    let mut connection = begin(&store).await;
    store.remember(&mut connection, "Place", "k", &answer("one")).await.expect("stored");
    drop(connection);
    assert_eq!(recall(&store, "Place", "k").await, None);
}

/// Rule 2, over several processes at once.
pub async fn of_concurrent_calls_one_does_the_work<H: StoreHarness>(harness: &mut H) {
    let mut callers = Vec::new();
    for caller in 0..6 {
        callers.push(tokio::spawn(call::<H>(harness.open().await, caller.to_string())));
    }
    let mut answers = Vec::new();
    for caller in callers {
        let answer = timeout(PATIENCE, caller).await.expect("nobody waits for ever");
        answers.push(answer.expect("no caller fails"));
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "all get the same answer: {answers:?}");
    assert_eq!(H::number(&harness.open().await, "work").await, 1);
}

async fn call<H: StoreHarness>(store: StoreOf<H>, caller: String) -> StoredCall {
    loop {
        let mut connection = begin(&store).await;
        match store.recall(&mut connection, "Place", "same").await {
            Ok(Some(call)) => return call,
            Ok(None) => {
                let mine = answer(&caller);
                let done = H::add(&store, &mut connection, "work", 1).await.is_ok()
                    && store.remember(&mut connection, "Place", "same", &mine).await.is_ok()
                    && store.commit(connection).await.is_ok();
                if done {
                    return mine;
                }
            }
            Err(error) => assert!(error.is_busy(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Rule 3.
pub async fn old_answers_are_forgotten_and_no_others<H: StoreHarness>(harness: &mut H) {
    let store = harness.open().await;
    remember(&store, "Place", "old", &answer("old")).await;
    harness.pass(Duration::from_secs(10)).await;
    let between = store.now();
    harness.pass(Duration::from_secs(10)).await;
    remember(&store, "Place", "new", &answer("new")).await;
    assert_eq!(store.forget(between).await.expect("answers can be forgotten"), 1);
    assert_eq!(recall(&store, "Place", "old").await, None);
    assert_eq!(recall(&store, "Place", "new").await, Some(answer("new")));
}
