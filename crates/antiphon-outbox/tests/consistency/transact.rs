//! Transactions as closures.

use std::sync::atomic::{AtomicU32, Ordering};

use antiphon_core::{Code, Context, Status};
use antiphon_messaging::{Command, Event, LANES};
use antiphon_outbox::{CommitError, OutboxStore, Position, Store};
use antiphon_testing::memory_store::{Fault, Point};
use tokio::time::Instant;

use crate::fixture::{Placed, World, add_one, faults, secs};

#[tokio::test(start_paused = true)]
async fn what_was_busy_is_done_again_from_the_beginning() {
    for busy_at in [Point::Begin, Point::Append, Point::Commit] {
        let world = World::new();
        let database = world.faulty(faults(move |point, count| {
            if point == busy_at && count < 3 { Fault::Busy } else { Fault::None }
        }));
        let name = String::from("a");
        let key = &name;
        let number = database
            .transact(|mut tx| {
                Box::pin(async move {
                    tx.emit(&Placed::new(key));
                    Ok::<_, CommitError>(add_one(&mut tx, key).await.unwrap())
                })
            })
            .await
            .unwrap();
        assert_eq!((number, world.number("a")), (1, 1), "{busy_at:?}");
        assert_eq!(world.store.backlog().await.unwrap().0, 1, "{busy_at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn it_gives_up_when_the_database_stays_busy() {
    let world = World::new();
    let database = world.faulty(faults(|_, _| Fault::Busy));
    let begun = Instant::now();
    let done: Result<(), Status> =
        database.transact(|_| Box::pin(async { Ok::<_, Status>(()) })).await;
    assert_eq!(done.unwrap_err().code(), Code::Aborted);
    assert!(begun.elapsed().as_secs() < 2);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_work_ends_it_and_undoes_it() {
    let world = World::new();
    let runs = AtomicU32::new(0);
    let runs_of = &runs;
    let done: Result<(), Status> = world
        .database
        .transact(|mut tx| {
            Box::pin(async move {
                runs_of.fetch_add(1, Ordering::Relaxed);
                add_one(&mut tx, "a").await?;
                Err(Status::not_found("no such order"))
            })
        })
        .await;
    assert_eq!(done.unwrap_err().code(), Code::NotFound);
    assert_eq!((runs.load(Ordering::Relaxed), world.number("a")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_commit_is_not_repeated() {
    let world = World::new();
    let database =
        world.faulty(faults(
            |point, _| {
                if point == Point::Commit { Fault::LostAfter } else { Fault::None }
            },
        ));
    let done: Result<u64, Status> =
        database.transact(|mut tx| Box::pin(async move { Ok(add_one(&mut tx, "a").await?) })).await;
    assert_eq!(done.unwrap_err().code(), Code::Unknown);
    assert_eq!(world.number("a"), 1);
}

#[tokio::test(start_paused = true)]
async fn overlapping_transactions_lose_no_update() {
    let world = World::new();
    let mut tasks = Vec::new();
    for _ in 0..20 {
        let database = world.database.clone();
        tasks.push(tokio::spawn(async move {
            let add = database
                .transact(|mut tx| Box::pin(async move { Ok(add_one(&mut tx, "a").await?) }));
            add.await.map_err(|error: Status| error.to_string())
        }));
    }
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(world.number("a"), 20);
}

impl Command for Placed {
    const DESTINATION: &'static str = "orders";
    fn key(&self) -> String {
        Event::key(self)
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_waits_longer_than_its_sender_had_time() {
    let world = World::new();
    let context = Context::root().with_deadline(Instant::now() + secs(1));
    let sending = async {
        let mut tx = world.database.begin().await.unwrap();
        tx.send(&Placed::new("a"));
        tx.commit().await.unwrap();
    };
    context.clone().scope(sending).await;
    let lanes = (0..LANES).map(|lane| Position { lane, after: None }).collect::<Vec<_>>();
    let rows = world.store.read(&lanes, world.store.now(), 10).await.unwrap();
    assert_eq!(rows[0].message.deadline(), None);
    assert_eq!(rows[0].message.attribute("correlationid"), Some(&*context.correlation_id()));
}
