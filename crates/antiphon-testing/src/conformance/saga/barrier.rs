//! `BarrierStore`: each command once, and no action after its undo.

use std::time::Duration;

use antiphon_core::Timestamp;
use antiphon_messaging::Message;
use antiphon_outbox::{InboxEntry, InboxStore, Store, StoreError};
use antiphon_saga::{BarrierKey, BarrierStore, Passage, SagaId, Side, StoredReply};
use tokio::time::timeout;

use super::{PATIENCE, SagaHarness, failed};
use crate::conformance::store::{begin, message_aged};

/// A key of the one saga that a case is about.
fn key(step: &str, side: Side) -> BarrierKey {
    let saga = SagaId::new(Timestamp::from_millis(1), "place-order", "order-1");
    BarrierKey { saga, step: step.to_owned(), side }
}

fn done(text: &'static str) -> StoredReply {
    StoredReply::Done(text.into())
}

fn refused() -> StoredReply {
    StoredReply::Refused { reason: "DECLINED".into(), message: "no \u{e4}".into() }
}

/// Passes, answers if there is something to answer, and commits.
async fn pass<S: BarrierStore>(
    store: &S,
    key: &BarrierKey,
    answer: Option<StoredReply>,
) -> Result<Passage, StoreError> {
    let mut connection = begin(store).await;
    let passage = store.pass(&mut connection, key, store.now()).await?;
    if let Some(answer) = answer {
        store.answer(&mut connection, key, &answer).await?;
    }
    store.commit(connection).await.map_err(failed)?;
    Ok(passage)
}

/// Rule 2, one after the other.
pub async fn a_command_passes_once_and_is_answered_as_before<H: SagaHarness>(harness: &mut H) {
    let store = harness.open().await;
    for (step, answer) in [("a", Some(done("reply"))), ("b", Some(refused())), ("c", None)] {
        for side in [Side::Action, Side::Undo] {
            let key = key(step, side);
            let first = pass(&store, &key, answer.clone()).await.expect("passed");
            assert!(matches!(first, Passage::First | Passage::Empty), "{step} {side:?}: {first:?}");
            for _ in 0..2 {
                let again = pass(&store, &key, None).await.expect("passed");
                assert_eq!(again, Passage::Repeated(answer.clone()), "{step} {side:?}");
            }
        }
    }
    let key = key("c", Side::Action);
    let mut connection = begin(&store).await;
    store.answer(&mut connection, &key, &done("late")).await.expect("answered");
    store.commit(connection).await.expect("committed");
    drop(store);
    harness.restart().await;
    let store = harness.open().await;
    let again = pass(&store, &key, None).await.expect("passed");
    assert_eq!(again, Passage::Repeated(Some(done("late"))));
}

/// Rule 1.
pub async fn passing_is_undone_with_its_transaction<H: SagaHarness>(harness: &mut H) {
    let store = harness.open().await;
    let (action, undo) = (key("a", Side::Action), key("a", Side::Undo));
    for side in [&action, &undo] {
        let mut connection = begin(&store).await;
        store.pass(&mut connection, side, store.now()).await.expect("passed");
        store.answer(&mut connection, side, &refused()).await.expect("answered");
        drop(connection);
    }
    assert_eq!(pass(&store, &action, Some(done("x"))).await.expect("passed"), Passage::First);
    let mut connection = begin(&store).await;
    store.retract(&mut connection, &action).await.expect("retracted");
    drop(connection);
    let again = pass(&store, &action, None).await.expect("passed");
    assert_eq!(again, Passage::Repeated(Some(done("x"))));
    assert_eq!(pass(&store, &undo, None).await.expect("passed"), Passage::First);
}

/// Rule 2, over several processes at once.
pub async fn of_concurrent_commands_one_passes<H: SagaHarness>(harness: &mut H) {
    let mut commands = Vec::new();
    for n in 0..6 {
        let store = harness.open().await;
        let side = if n % 2 == 0 { Side::Action } else { Side::Undo };
        commands.push(tokio::spawn(async move {
            let key = key("a", side);
            loop {
                match pass(&store, &key, Some(done("x"))).await {
                    Ok(passage) => return (side, passage),
                    Err(_) => tokio::time::sleep(Duration::from_millis(3)).await,
                }
            }
        }));
    }
    let (mut actions, mut undos, mut empty) = (0, 0, 0);
    for command in commands {
        let passed = timeout(PATIENCE, command).await.expect("nobody waits for ever");
        match passed.expect("no command fails") {
            (Side::Action, Passage::First) => actions += 1,
            (Side::Undo, Passage::First) => undos += 1,
            (_, Passage::Empty) => empty += 1,
            _ => {}
        }
    }
    assert_eq!(undos + empty, 1, "one undo passes");
    assert_eq!(actions, undos, "an action has passed if, and only if, there is one to undo");
}

/// Rule 5.
pub async fn a_message_enters_and_its_command_passes_at_once<H: SagaHarness>(harness: &mut H) {
    const HOUR: Duration = Duration::from_secs(3_600);
    let store = harness.open().await;
    let arrive = async |message: &Message, key: &BarrierKey| {
        let (mut connection, now) = (begin(&store).await, store.now());
        let arrived = store.enter_and_pass(&mut connection, "c", message, key, now).await;
        let (entry, passage) = arrived.expect("arrived");
        if passage == Some(Passage::First) {
            store.answer(&mut connection, key, &done("x")).await.expect("answered");
        }
        store.commit(connection).await.expect("committed");
        (entry, passage)
    };
    let new = || message_aged(store.now(), Duration::ZERO, "k", "command");
    let (action, undo) = (key("a", Side::Action), key("a", Side::Undo));
    let first = new();
    let mut connection = begin(&store).await;
    let now = store.now();
    let arrived = store.enter_and_pass(&mut connection, "c", &first, &action, now).await;
    assert_eq!(arrived.expect("arrived"), (InboxEntry::New, Some(Passage::First)));
    drop(connection);
    assert_eq!(arrive(&first, &action).await, (InboxEntry::New, Some(Passage::First)), "undone");
    assert_eq!(arrive(&first, &action).await, (InboxEntry::Duplicate, None));
    let repeated = Passage::Repeated(Some(done("x")));
    assert_eq!(arrive(&new(), &action).await, (InboxEntry::New, Some(repeated)));
    assert_eq!(arrive(&new(), &undo).await, (InboxEntry::New, Some(Passage::First)));
    let (action, undo) = (key("b", Side::Action), key("b", Side::Undo));
    assert_eq!(arrive(&new(), &undo).await, (InboxEntry::New, Some(Passage::Empty)));
    assert_eq!(arrive(&new(), &action).await, (InboxEntry::New, Some(Passage::Blocked)));
    let action = key("c", Side::Action);
    store.expire(store.now() - HOUR).await.expect("moved");
    for age in [2 * HOUR, 200 * HOUR] {
        let old = message_aged(store.now(), age, "k", "old");
        assert_eq!(arrive(&old, &action).await, (InboxEntry::BeyondHorizon, None), "{age:?}");
    }
    let recent = message_aged(store.now(), HOUR / 2, "k", "recent");
    assert_eq!(arrive(&recent, &action).await, (InboxEntry::New, Some(Passage::First)));
    let counts = store.handled().await.expect("counted");
    let counts: Vec<_> = counts.iter().map(|count| (count.done, count.duplicates)).collect();
    assert_eq!(counts, [(6, 1)], "what is beyond the horizon is not counted");
}

/// Rule 3.
pub async fn an_undo_before_its_action_is_empty_and_blocks_it<H: SagaHarness>(harness: &mut H) {
    let store = harness.open().await;
    let (action, undo) = (key("a", Side::Action), key("a", Side::Undo));
    assert_eq!(pass(&store, &undo, Some(done(""))).await.expect("passed"), Passage::Empty);
    drop(store);
    harness.restart().await;
    let store = harness.open().await;
    for _ in 0..2 {
        assert_eq!(pass(&store, &action, None).await.expect("passed"), Passage::Blocked);
    }
    let again = pass(&store, &undo, None).await.expect("passed");
    assert_eq!(again, Passage::Repeated(Some(done(""))));
}

/// Rule 3, where the action was refused.
pub async fn an_undo_of_what_was_refused_is_empty<H: SagaHarness>(harness: &mut H) {
    let store = harness.open().await;
    let (action, undo) = (key("a", Side::Action), key("a", Side::Undo));
    pass(&store, &action, Some(refused())).await.expect("passed");
    assert_eq!(pass(&store, &undo, Some(done(""))).await.expect("passed"), Passage::Empty);
    let again = pass(&store, &action, None).await.expect("passed");
    assert_eq!(again, Passage::Repeated(Some(refused())), "it never runs");
}

/// Rule 3, where it was not.
pub async fn an_undo_of_what_may_have_happened_passes<H: SagaHarness>(harness: &mut H) {
    let store = harness.open().await;
    for (step, answer) in [("a", Some(done("x"))), ("b", None)] {
        let (action, undo) = (key(step, Side::Action), key(step, Side::Undo));
        pass(&store, &action, answer.clone()).await.expect("passed");
        assert_eq!(pass(&store, &undo, None).await.expect("passed"), Passage::First, "{step}");
        let again = pass(&store, &action, None).await.expect("passed");
        assert_eq!(again, Passage::Repeated(answer), "{step}");
    }
}

/// What cannot be refused is asked for again.
pub async fn a_retracted_command_passes_again<H: SagaHarness>(harness: &mut H) {
    let store = harness.open().await;
    let action = key("a", Side::Action);
    pass(&store, &action, Some(refused())).await.expect("passed");
    let mut connection = begin(&store).await;
    store.retract(&mut connection, &action).await.expect("retracted");
    store.commit(connection).await.expect("committed");
    assert_eq!(pass(&store, &action, None).await.expect("passed"), Passage::First);
}

/// What a key is made of.
pub async fn sagas_and_steps_do_not_mix<H: SagaHarness>(harness: &mut H) {
    let store = harness.open().await;
    let one = key("a", Side::Action);
    let step = key("b", Side::Action);
    let saga = SagaId::new(Timestamp::from_millis(1), "place-order", "order-2");
    let saga = BarrierKey { saga, ..one.clone() };
    for key in [&one, &step, &saga] {
        assert_eq!(pass(&store, key, None).await.expect("passed"), Passage::First);
    }
}

/// Rule 4.
pub async fn only_old_commands_are_forgotten<H: SagaHarness>(harness: &mut H) {
    let store = harness.open().await;
    for step in ["a", "b", "c"] {
        pass(&store, &key(step, Side::Action), None).await.expect("passed");
    }
    harness.pass(Duration::from_secs(100)).await;
    pass(&store, &key("young", Side::Action), None).await.expect("passed");
    let before = store.now() - Duration::from_secs(50);
    assert_eq!(store.forget_passed(before, 2).await.expect("forgotten"), 2);
    assert_eq!(store.forget_passed(before, 9).await.expect("forgotten"), 1);
    assert_eq!(store.forget_passed(before, 9).await.expect("forgotten"), 0);
    let young = pass(&store, &key("young", Side::Action), None).await.expect("passed");
    assert_eq!(young, Passage::Repeated(None));
}
