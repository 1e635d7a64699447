//! What a participant makes of commands: several at once, and in any order.

use antiphon_core::RetryPolicy;
use antiphon_messaging::{Dead, DeadFilter};
use antiphon_saga::{Saga, State, Step};
use antiphon_testing::MemoryStore;

use crate::desk::{Agency, Answer, SECOND, ended_as};
use crate::messages::{Book, Trip, Unbook};

fn saga() -> Saga<Trip, MemoryStore> {
    let retry = RetryPolicy::exponential(SECOND, 4 * SECOND).attempts(3);
    let book = Step::remote("book", |trip: &Trip| Book::of(&trip.id))
        .undo(|trip| Unbook::of(&trip.id))
        .timeout(5 * SECOND)
        .retry(retry);
    Saga::define("trip", 1).step(book).build().unwrap()
}

async fn outcomes(agency: &Agency, saga: &Saga<Trip, MemoryStore>, count: usize) -> Vec<State> {
    let mut ids = Vec::new();
    let mut tx = agency.trips.begin().await.unwrap();
    for number in 0..count {
        let id = format!("t{number}");
        ids.push(saga.start(&mut tx, &id, &Trip::of(&id)).await.unwrap().id);
    }
    tx.commit().await.unwrap();
    let mut states = Vec::new();
    for id in ids {
        let view = agency.ends(id).await;
        ended_as(&view, view.state);
        states.push(view.state);
    }
    states
}

#[tokio::test(start_paused = true)]
async fn many_commands_at_once_each_take_effect_once() {
    let saga = saga();
    let agency = Agency::open(&[&saga]);
    let states = outcomes(&agency, &saga, 50).await;
    assert!(states.iter().all(|state| *state == State::Completed));
    assert_eq!(agency.desks.store().rows("desk").len(), 50);
}

#[tokio::test(start_paused = true)]
async fn commands_that_are_refused_do_not_take_others_with_them() {
    let saga = saga();
    let agency = Agency::open(&[&saga]);
    agency.desk.answers("Book", Answer::Refused);
    let states = outcomes(&agency, &saga, 30).await;
    assert!(states.iter().all(|state| *state == State::Compensated));
    assert!(agency.desks.store().rows("desk").is_empty(), "what they wrote is rolled back");
    assert_eq!(agency.desk.asked().len(), 30, "what is refused is asked only once");
}

#[tokio::test(start_paused = true)]
async fn commands_that_fail_are_tried_again_and_do_not_take_others_with_them() {
    let saga = saga();
    let agency = Agency::open(&[&saga]);
    agency.desk.answers("Book", Answer::Fails(7));
    let states = outcomes(&agency, &saga, 30).await;
    assert!(states.iter().all(|state| *state == State::Completed));
    assert_eq!(agency.desks.store().rows("desk").len(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_costs_only_its_own_command() {
    let saga = saga();
    let agency = Agency::open(&[&saga]);
    agency.desk.answers("Book", Answer::Panics);
    let panics = agency.start(&saga, "panics").await;
    tokio::time::sleep(SECOND).await;
    agency.desk.answers("Book", Answer::Done);
    ended_as(&agency.ends(panics).await, State::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_no_saga_sent_is_a_dead_letter() {
    let saga = saga();
    let agency = Agency::open(&[&saga]);
    let mut tx = agency.trips.begin().await.unwrap();
    tx.send(&Book::of("t1"));
    tx.commit().await.unwrap();
    tokio::time::sleep(SECOND).await;
    let letters = agency.messaging.broker.dead_letters().unwrap();
    let letters = letters.list(&DeadFilter::default(), None, 10).await.unwrap();
    let [Dead { code, error, .. }] = &letters[0].deaths[..] else { panic!("{letters:?}") };
    assert_eq!(code, "decode");
    assert!(error.contains("not sent by a saga"), "{error}");
    assert!(agency.desk.asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_command_whose_commit_is_refused_does_not_take_others_with_it() {
    let saga = saga();
    let agency = Agency::open(&[&saga]);
    let mut ids = Vec::new();
    let mut tx = agency.trips.begin().await.unwrap();
    for id in ["t1", "t2", "spoils", "t3", "t4"] {
        ids.push((id, saga.start(&mut tx, id, &Trip::of(id)).await.unwrap().id));
    }
    tx.commit().await.unwrap();
    for (id, saga) in ids {
        let view = agency.ends(saga).await;
        let expected = if id == "spoils" { State::Compensated } else { State::Completed };
        ended_as(&view, expected);
    }
    assert_eq!(agency.desks.store().rows("desk").len(), 4);
}
