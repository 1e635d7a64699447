//! What the coordinator makes of definitions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use antiphon_core::{Clock, Context, RetryPolicy};
use antiphon_messaging::Fail;
use antiphon_outbox::{Database, Store, Tx};
use antiphon_saga::{
    LocalWork, Phase, Rejection, Saga, SagaBuilder, SagaFilter, SagaStore, State, Step,
};
use antiphon_testing::MemoryStore;

use crate::desk::{Agency, Answer, SECOND, START, ended_as};
use crate::messages::{Book, Done, Pay, Refund, Send, Trip, Unbook};

type OneStep = Step<Trip, MemoryStore>;
type TripSaga = Saga<Trip, MemoryStore>;

fn retry() -> RetryPolicy {
    RetryPolicy::exponential(SECOND, 4 * SECOND).attempts(3)
}

fn book() -> OneStep {
    Step::remote("book", |trip: &Trip| Book::of(&trip.id))
        .undo(|trip| Unbook::of(&trip.id))
        .on_reply(|trip, done: Done| trip.note.push_str(&done.note))
        .timeout(2 * SECOND)
        .retry(retry())
}

fn pay() -> OneStep {
    Step::remote("pay", |trip: &Trip| Pay::of(&trip.id))
        .undo(|trip| Refund::of(&trip.id))
        .timeout(2 * SECOND)
        .retry(retry())
}

fn send() -> OneStep {
    Step::remote("send", |trip: &Trip| Send::of(&trip.id))
        .forward_only()
        .timeout(2 * SECOND)
        .retry(retry())
}

async fn confirm(trip: &mut Trip, tx: &mut Tx<MemoryStore>) -> Result<(), Rejection> {
    trip.note.push_str(" confirmed");
    tx.put("trips", &trip.id, "confirmed").await?;
    Ok(())
}

async fn cancelled(trip: &mut Trip, tx: &mut Tx<MemoryStore>) -> Result<(), Rejection> {
    tx.put("trips", &trip.id, trip.note.clone()).await?;
    Ok(())
}

fn define(version: u32) -> SagaBuilder<Trip, MemoryStore> {
    Saga::define("trip", version)
        .deadline(60 * SECOND)
        .on_failure(|trip: &mut Trip, failure| {
            trip.note = format!("{} at {:?}", failure.reason, failure.step);
        })
        .on_compensated(cancelled)
}

fn trip() -> TripSaga {
    let confirm = Step::local("confirm", confirm).pivot();
    define(1).step(book()).step(pay()).step(confirm).step(send()).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_saga_goes_through_and_knows_what_it_was_told() {
    let saga = trip();
    let agency = Agency::open(&[&saga]);
    let id = agency.start(&saga, "t1").await;
    ended_as(&agency.ends(id).await, State::Completed);
    assert_eq!(agency.desk.asked(), ["Book t1", "Pay t1", "Send t1"]);
    assert_eq!(agency.data(id).await.note, "Book confirmed");
    let row = agency.trips.store().row("trips", "t1");
    assert_eq!(row.as_deref(), Some(b"confirmed".as_slice()));
}

#[tokio::test(start_paused = true)]
async fn a_second_start_is_the_same_saga() {
    let saga = trip();
    let agency = Agency::open(&[&saga]);
    let id = agency.start(&saga, "t1").await;
    tokio::time::sleep(SECOND).await;
    let mut tx = agency.trips.begin().await.unwrap();
    let again = saga.start(&mut tx, "t1", &Trip::of("other")).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((again.id, again.is_new), (id, false));
    agency.ends(id).await;
    assert_eq!(agency.desk.asked().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_rolled_back_never_was() {
    let saga = trip();
    let agency = Agency::open(&[&saga]);
    let mut tx = agency.trips.begin().await.unwrap();
    let lost = saga.start(&mut tx, "t1", &Trip::of("t1")).await.unwrap();
    drop(tx);
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(agency.operator.show(lost.id).await.unwrap(), None);
    assert!(agency.desk.asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_taken_into_the_data_and_everything_is_given_back() {
    let saga = trip();
    let agency = Agency::open(&[&saga]);
    agency.desk.answers("Pay", Answer::Refused);
    let id = agency.start(&saga, "t1").await;
    let view = agency.ends(id).await;
    ended_as(&view, State::Compensated);
    assert_eq!(agency.desk.asked(), ["Book t1", "Pay t1", "Unbook t1"]);
    let row = agency.trips.store().row("trips", "t1").unwrap();
    assert_eq!(row, r#"NO at Some("pay")"#);
    assert_eq!(view.failure.unwrap().message, "no Pay");
    let written = agency.desks.store().row("desk", "Pay t1");
    assert_eq!(written, None, "what a refused command wrote is rolled back");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_never_comes_is_undone_and_its_late_answer_means_nothing() {
    let saga = trip();
    let agency = Agency::open(&[&saga]);
    agency.desk.answers("Pay", Answer::Later);
    let id = agency.start(&saga, "t1").await;
    let view = agency.ends(id).await;
    ended_as(&view, State::Compensated);
    assert_eq!(agency.desk.asked(), ["Book t1", "Pay t1", "Refund t1", "Unbook t1"]);
    assert_eq!(view.failure.unwrap().reason, "TIMEOUT");
    let ticket = agency.desk.tickets.lock()[0].clone();
    let mut tx = agency.desks.begin().await.unwrap();
    ticket.done(&mut tx, &Done::default()).await.unwrap();
    tx.commit().await.unwrap();
    tokio::time::sleep(5 * SECOND).await;
    ended_as(&agency.show(id).await, State::Compensated);
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_a_later_transaction_moves_the_saga_on() {
    let saga = trip();
    let agency = Agency::open(&[&saga]);
    agency.desk.answers("Pay", Answer::Later);
    let id = agency.start(&saga, "t1").await;
    agency.until(id, |view| view.steps[1].tries == 2).await;
    let ticket = agency.desk.tickets.lock()[0].clone();
    let ticket = ticket.to_string().parse::<antiphon_saga::Ticket>().unwrap();
    let mut tx = agency.desks.begin().await.unwrap();
    ticket.done(&mut tx, &Done::default()).await.unwrap();
    tx.commit().await.unwrap();
    ended_as(&agency.ends(id).await, State::Completed);
    assert_eq!(agency.desk.tickets.lock().len(), 1, "the second try did not pass the barrier");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_in_a_later_transaction_turns_the_saga_back() {
    let saga = trip();
    let agency = Agency::open(&[&saga]);
    agency.desk.answers("Pay", Answer::Later);
    let id = agency.start(&saga, "t1").await;
    agency.until(id, |view| !view.steps.is_empty() && view.steps[1].phase == Phase::Running).await;
    tokio::time::sleep(SECOND).await;
    let ticket = agency.desk.tickets.lock()[0].clone();
    let mut tx = agency.desks.begin().await.unwrap();
    let failure = Rejection::from(Fail::retry("not a refusal"));
    assert!(ticket.refuse(&mut tx, failure).await.is_err());
    ticket.refuse(&mut tx, Rejection::because("DECLINED", "no")).await.unwrap();
    tx.commit().await.unwrap();
    let view = agency.ends(id).await;
    ended_as(&view, State::Compensated);
    assert_eq!(view.failure.unwrap().reason, "DECLINED");
    assert_eq!(agency.desk.asked(), ["Book t1", "Pay t1", "Unbook t1"], "nothing to refund");
}

/// Local work that goes wrong a number of times.
struct Stumbles(Arc<AtomicU32>, fn() -> Result<(), Rejection>);

impl LocalWork<Trip, MemoryStore> for Stumbles {
    async fn run(&self, trip: &mut Trip, tx: &mut Tx<MemoryStore>) -> Result<(), Rejection> {
        trip.note.push_str(" stumbled");
        tx.put("stumbles", &trip.id, "x").await?;
        if self.0.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.0.store(0, Ordering::Relaxed);
            return Ok(());
        }
        (self.1)()
    }
}

fn stumbling(times: u32, how: fn() -> Result<(), Rejection>) -> TripSaga {
    let work = Stumbles(Arc::new(AtomicU32::new(times)), how);
    let confirm = Step::local("confirm", work).pivot().retry(retry()).timeout(SECOND);
    define(1).step(book()).step(confirm).step(send()).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_local_step_that_fails_or_panics_is_run_again_from_where_it_was() {
    for how in [|| Err(Fail::retry("trouble").into()), || panic!("it panics")] {
        let saga = stumbling(2, how);
        let agency = Agency::open(&[&saga]);
        let id = agency.start(&saga, "t1").await;
        ended_as(&agency.ends(id).await, State::Completed);
        assert_eq!(agency.data(id).await.note, "Book stumbled", "what failed left nothing behind");
        assert_eq!(agency.desk.asked(), ["Book t1", "Send t1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_local_step_that_keeps_failing_turns_the_saga_back() {
    let saga = stumbling(9, || Err(Fail::retry("trouble").into()));
    let agency = Agency::open(&[&saga]);
    let id = agency.start(&saga, "t1").await;
    let view = agency.ends(id).await;
    ended_as(&view, State::Compensated);
    assert!(view.failure.unwrap().message.contains("trouble"));
    assert_eq!(agency.trips.store().row("stumbles", "t1"), None);
    assert_eq!(agency.desk.asked(), ["Book t1", "Unbook t1"]);
}

#[tokio::test(start_paused = true)]
async fn a_local_step_that_refuses_leaves_nothing_and_turns_the_saga_back() {
    let saga = stumbling(1, || Err(Rejection::because("SOLD_OUT", "too late")));
    let agency = Agency::open(&[&saga]);
    let id = agency.start(&saga, "t1").await;
    let view = agency.ends(id).await;
    ended_as(&view, State::Compensated);
    assert_eq!(view.failure.unwrap().reason, "SOLD_OUT");
    assert_eq!(agency.trips.store().row("stumbles", "t1"), None);
}

#[tokio::test(start_paused = true)]
async fn a_local_step_may_come_first() {
    let first = Step::local("note", confirm).nothing_to_undo();
    let saga = define(1).step(first).step(book()).build().unwrap();
    let agency = Agency::open(&[&saga]);
    let id = agency.start(&saga, "t1").await;
    ended_as(&agency.ends(id).await, State::Completed);
    assert_eq!(agency.data(id).await.note, " confirmedBook");
}

#[tokio::test(start_paused = true)]
async fn steps_side_by_side_are_both_undone() {
    let side_by_side = define(1)
        .step(book().after([]))
        .step(pay().after([]))
        .step(Step::local("confirm", confirm).pivot().after(["book", "pay"]))
        .build()
        .unwrap();
    let agency = Agency::open(&[&side_by_side]);
    agency.desk.answers("Pay", Answer::Refused);
    let id = agency.start(&side_by_side, "t1").await;
    ended_as(&agency.ends(id).await, State::Compensated);
    let asked = agency.desk.asked();
    assert!(!asked.contains(&"Refund t1".to_owned()), "{asked:?}");
    let booked = asked.iter().filter(|asked| *asked == "Book t1").count();
    let unbooked = asked.iter().filter(|asked| *asked == "Unbook t1").count();
    assert_eq!(booked, unbooked, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn versions_run_side_by_side_until_their_sagas_have_ended() {
    let old = define(1).step(book()).step(pay()).build().unwrap();
    let new = define(2).step(pay()).build().unwrap();
    let agency = Agency::open(&[&old, &new]);
    let first = agency.start(&old, "t1").await;
    let second = agency.start(&new, "t2").await;
    ended_as(&agency.ends(first).await, State::Completed);
    ended_as(&agency.ends(second).await, State::Completed);
    let asked = agency.desk.asked();
    assert!(asked.contains(&"Book t1".into()) && !asked.contains(&"Book t2".into()), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_program_without_a_version_that_still_runs_does_not_start() {
    let clock = Clock::ticking(START);
    let trips = Database::new("trips", MemoryStore::new(clock.clone()));
    let old = define(1).step(book()).build().unwrap();
    let mut tx = trips.begin().await.unwrap();
    old.start(&mut tx, "t1", &Trip::of("t1")).await.unwrap();
    tx.commit().await.unwrap();
    let new = define(2).step(pay()).build().unwrap();
    let agency = Agency::open_on(trips, clock, &[&new]);
    let error = agency.coordinator.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("trip version 1 (1)"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_cannot_be_read_is_put_aside_and_blocks_nobody() {
    let saga = trip();
    let agency = Agency::open(&[&saga]);
    agency.desk.answers("Book", Answer::Fails(19));
    let broken = agency.start(&saga, "t1").await;
    tokio::time::sleep(SECOND / 2).await;
    let store = agency.trips.store();
    let mut connection = store.begin().await.unwrap();
    let mut row = store.load(&mut connection, &[broken]).await.unwrap().pop().unwrap();
    row.progress = "{".into();
    store.save(&mut connection, &[row]).await.unwrap();
    store.commit(connection).await.unwrap();
    agency.desk.answers("Book", Answer::Done);
    let fine = agency.start(&saga, "t2").await;
    ended_as(&agency.ends(fine).await, State::Completed);
    tokio::time::sleep(30 * SECOND).await;
    let mut connection = store.begin().await.unwrap();
    let row = store.load(&mut connection, &[broken]).await.unwrap().pop().unwrap();
    assert!(row.parked, "an operator must look at it");
    assert!(row.revision < 5, "its timer does not go off again and again: {}", row.revision);
}

#[tokio::test(start_paused = true)]
async fn a_definition_that_panics_is_put_aside_and_blocks_nobody() {
    let panics = |trip: &Trip| match trip.id.as_str() {
        "bad" => panic!("the definition panics"),
        id => Refund::of(id),
    };
    let first = Step::local("note", confirm).nothing_to_undo();
    let second = Step::remote("refund", panics).nothing_to_undo();
    let saga = define(1).step(first).step(second).build().unwrap();
    let agency = Agency::open(&[&saga]);
    let bad = agency.start(&saga, "bad").await;
    let good = agency.start(&saga, "good").await;
    ended_as(&agency.ends(good).await, State::Completed);
    let row = agency.trips.store().list(&SagaFilter::default(), 9).await.unwrap();
    assert!(row.iter().any(|row| row.id == bad && row.parked));
}

#[tokio::test(start_paused = true)]
async fn all_of_a_saga_is_in_the_trace_of_the_call_that_started_it() {
    let saga = trip();
    let agency = Agency::open(&[&saga]);
    let context = Context::root().with_correlation_id("c-7").with_idempotency_key("k");
    let trace = context.trace().trace_id;
    let id = context.scope(agency.start(&saga, "t1")).await;
    agency.desk.answers("Pay", Answer::Later);
    agency.ends(id).await;
    // Every message that was ever sent is still known to the broker's topics by its attributes.
    let rows = agency.trips.store().list(&SagaFilter::default(), 1).await.unwrap();
    assert!(rows[0].progress.contains(&trace.to_string()));
    assert!(rows[0].progress.contains("c-7"));
    assert!(!rows[0].progress.contains("idempotency"));
}
