//! Calls that are made twice.

use std::sync::atomic::{AtomicU32, Ordering};

use antiphon_core::{Code, Context, Status};
use antiphon_outbox::{Call, Database, Housekeeping, OutboxStore, RequestHash, Retention};
use antiphon_testing::MemoryStore;
use antiphon_testing::memory_store::{Fault, Point};

use crate::fixture::{Placed, World, add_one, faults, secs};

const METHOD: &str = "test.Orders/Place";

/// Places an order as a service would: the answer says the how manieth it is.
async fn place(db: &Database<MemoryStore>, request: &Placed) -> Result<Placed, Status> {
    db.idempotent(METHOD, RequestHash::of(request), |mut tx| {
        Box::pin(async move {
            let number = add_one(&mut tx, "orders").await?;
            tx.emit(&Placed::new(request.text()));
            if request.text() == "declined" {
                return Err(Status::failed_precondition("the card was declined"));
            }
            Ok(Placed::new(&format!("{} {number}", request.text())))
        })
    })
    .await
}

async fn with_key(
    key: &str,
    work: impl Future<Output = Result<Placed, Status>>,
) -> Result<String, Status> {
    let context = Context::root().with_idempotency_key(key);
    context.scope(work).await.map(|answer| answer.text().to_owned())
}

#[tokio::test(start_paused = true)]
async fn the_same_call_gets_the_same_answer_and_takes_effect_once() {
    let world = World::new();
    let request = Placed::new("a");
    for _ in 0..3 {
        assert_eq!(with_key("k1", place(&world.database, &request)).await.unwrap(), "a 1");
    }
    assert_eq!(with_key("k2", place(&world.database, &request)).await.unwrap(), "a 2");
    assert_eq!((world.number("orders"), world.store.backlog().await.unwrap().0), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_used_for_another_request_is_refused() {
    let world = World::new();
    with_key("k", place(&world.database, &Placed::new("a"))).await.unwrap();
    let status = with_key("k", place(&world.database, &Placed::new("b"))).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.reason(), "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(status.http_status(), 422);
    assert_eq!(world.number("orders"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_failed_may_be_tried_again_with_the_same_key() {
    let world = World::new();
    for _ in 0..2 {
        let status = with_key("k", place(&world.database, &Placed::new("declined"))).await;
        assert_eq!(status.unwrap_err().code(), Code::FailedPrecondition);
    }
    assert_eq!(world.number("orders"), 0);
    assert_eq!(with_key("k", place(&world.database, &Placed::new("a"))).await.unwrap(), "a 1");
}

#[tokio::test(start_paused = true)]
async fn without_a_key_every_call_counts() {
    let world = World::new();
    let request = Placed::new("a");
    for n in 1..=3 {
        let answer = place(&world.database, &request).await.unwrap();
        assert_eq!(answer.text(), format!("a {n}"));
    }
}

#[tokio::test(start_paused = true)]
async fn of_calls_at_the_same_time_one_does_the_work() {
    let world = World::new();
    let mut calls = Vec::new();
    for _ in 0..10 {
        let database = world.database.clone();
        calls.push(tokio::spawn(async move {
            with_key("k", place(&database, &Placed::new("a"))).await.unwrap()
        }));
    }
    for call in calls {
        assert_eq!(call.await.unwrap(), "a 1");
    }
    assert_eq!((world.number("orders"), world.store.backlog().await.unwrap().0), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn after_an_unknown_commit_the_same_call_finds_out() {
    for (fault, effects) in [(Fault::LostAfter, 1), (Fault::LostBefore, 1)] {
        let world = World::new();
        let losing = world.faulty(faults(move |point, count| match point {
            Point::Commit if count == 0 => fault,
            _ => Fault::None,
        }));
        let request = Placed::new("a");
        let status = with_key("k", place(&losing, &request)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unknown);
        assert_eq!(with_key("k", place(&losing, &request)).await.unwrap(), "a 1");
        assert_eq!(world.number("orders"), effects, "{fault:?}");
        assert_eq!(world.store.backlog().await.unwrap().0, 1, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_too_long_is_refused() {
    let world = World::new();
    let key = "k".repeat(256);
    let status = with_key(&key, place(&world.database, &Placed::new("a"))).await.unwrap_err();
    assert_eq!(
        (status.code(), status.reason()),
        (Code::InvalidArgument, "IDEMPOTENCY_KEY_TOO_LONG")
    );
    with_key(&key[1..], place(&world.database, &Placed::new("a"))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_forgotten_after_its_time() {
    let mut world = World::new();
    let retention = Retention { inbox: secs(1_000), calls: secs(100) };
    let housekeeping = Housekeeping::new(&world.database, &world.telemetry);
    world.run(housekeeping.with_retention(retention));
    let request = Placed::new("a");
    assert_eq!(with_key("k", place(&world.database, &request)).await.unwrap(), "a 1");
    tokio::time::sleep(secs(50)).await;
    assert_eq!(with_key("k", place(&world.database, &request)).await.unwrap(), "a 1");
    tokio::time::sleep(secs(120)).await;
    assert_eq!(with_key("k", place(&world.database, &request)).await.unwrap(), "a 2");
}

#[tokio::test(start_paused = true)]
async fn the_plain_form_does_the_same() {
    let world = World::new();
    let runs = AtomicU32::new(0);
    let place = async |request: Placed| -> Result<Placed, Status> {
        let mut tx = match world.database.begin_call(METHOD, RequestHash::of(&request)).await? {
            Call::Answered(answer) => return Ok(answer),
            Call::New(tx) => tx,
        };
        runs.fetch_add(1, Ordering::Relaxed);
        add_one(&mut tx, "orders").await?;
        tx.commit(&request).await?;
        Ok(request)
    };
    for _ in 0..2 {
        assert_eq!(with_key("k", place(Placed::new("a"))).await.unwrap(), "a");
    }
    assert_eq!((runs.load(Ordering::Relaxed), world.number("orders")), (1, 1));
}
