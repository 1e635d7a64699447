//! Looking at sagas, and intervening.

use antiphon_core::RetryPolicy;
use antiphon_saga::{Intervention, Phase, Saga, SagaFilter, State, Step};
use antiphon_testing::MemoryStore;

use crate::desk::{Agency, Answer, SECOND, ended_as};
use crate::messages::{Book, Done, HasPaid, Pay, Refund, Trip, Unbook};

type TripSaga = Saga<Trip, MemoryStore>;

fn retry() -> RetryPolicy {
    RetryPolicy::exponential(SECOND, 4 * SECOND).attempts(3)
}

fn book() -> Step<Trip, MemoryStore> {
    Step::remote("book", |trip: &Trip| Book::of(&trip.id))
        .undo(|trip| Unbook::of(&trip.id))
        .timeout(2 * SECOND)
        .retry(retry())
}

fn pay_once() -> Step<Trip, MemoryStore> {
    Step::remote("pay", |trip: &Trip| Pay::of(&trip.id))
        .at_most_once()
        .timeout(2 * SECOND)
        .retry(retry())
}

fn saga(pay: Step<Trip, MemoryStore>) -> TripSaga {
    Saga::define("trip", 1).step(book()).step(pay).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_nobody_knows_is_parked_until_an_operator_settles_it() {
    for (happened, state) in [(true, State::Completed), (false, State::Compensated)] {
        let saga = saga(pay_once().nothing_to_undo());
        let agency = Agency::open(&[&saga]);
        agency.desk.answers("Pay", Answer::Later);
        let id = agency.start(&saga, "t1").await;
        let view = agency.until(id, |view| view.parked.is_some()).await;
        assert_eq!(view.steps[1].phase, Phase::Unknown);
        tokio::time::sleep(30 * SECOND).await;
        assert_eq!(agency.desk.asked(), ["Book t1", "Pay t1"], "it is never asked for again");
        let operator = &agency.operator;
        assert_eq!(operator.resume(id).await.unwrap(), Intervention::NotNow);
        assert_eq!(operator.settle(id, "book", true).await.unwrap(), Intervention::NotNow);
        assert_eq!(operator.settle(id, "fly", true).await.unwrap(), Intervention::NotFound);
        assert_eq!(operator.settle(id, "pay", happened).await.unwrap(), Intervention::Done);
        ended_as(&agency.ends(id).await, state);
        assert_eq!(operator.cancel(id).await.unwrap(), Intervention::NotNow);
    }
}

#[tokio::test(start_paused = true)]
async fn a_query_finds_out_what_nobody_knew() {
    for (answer, state) in [(Answer::Done, State::Completed), (Answer::Refused, State::Compensated)]
    {
        let pay = pay_once()
            .query(|trip| HasPaid::of(&trip.id))
            .undo(|trip| Refund::of(&trip.id))
            .on_reply(|trip, done: Done| trip.note = done.note);
        let saga = saga(pay);
        let agency = Agency::open(&[&saga]);
        agency.desk.answers("Pay", Answer::Later);
        agency.desk.answers("HasPaid", answer);
        let id = agency.start(&saga, "t1").await;
        ended_as(&agency.ends(id).await, state);
        let asked = agency.desk.asked();
        assert_eq!(asked[..3], ["Book t1", "Pay t1", "HasPaid t1"]);
        // The command may still have been on the way: its undo keeps it from ever running.
        let undone = asked.contains(&"Refund t1".into());
        assert_eq!(undone, state == State::Compensated);
        let told = if answer == Answer::Done { "HasPaid" } else { "" };
        assert_eq!(agency.data(id).await.note, told);
    }
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_is_refused_parks_the_saga_until_it_is_not() {
    let saga = saga(pay_once().nothing_to_undo());
    let agency = Agency::open(&[&saga]);
    agency.desk.answers("Pay", Answer::Refused);
    agency.desk.answers("Unbook", Answer::Refused);
    let id = agency.start(&saga, "t1").await;
    let view = agency.until(id, |view| view.parked.is_some()).await;
    assert_eq!(view.state, State::Compensating);
    let parked = SagaFilter { parked: true, ..SagaFilter::default() };
    assert_eq!(agency.operator.list(&parked, 10).await.unwrap().len(), 1);
    agency.desk.answers("Unbook", Answer::Done);
    assert_eq!(agency.operator.resume(id).await.unwrap(), Intervention::Done);
    ended_as(&agency.ends(id).await, State::Compensated);
    assert!(agency.operator.list(&parked, 10).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_goes_with_the_transaction_it_is_made_in() {
    let saga = saga(pay_once().undo(|trip| Refund::of(&trip.id)).timeout(20 * SECOND));
    let agency = Agency::open(&[&saga]);
    agency.desk.answers("Pay", Answer::Later);
    let id = agency.start(&saga, "t1").await;
    agency.until(id, |view| view.steps[1].phase == Phase::Running).await;
    let cancel = async |correlation: &str, commits: bool| {
        let mut tx = agency.trips.begin().await.unwrap();
        let operator = &agency.operator;
        let outcome = operator.cancel_within(&mut tx, "trip", correlation).await.unwrap();
        if commits {
            tx.commit().await.unwrap();
        }
        outcome
    };
    assert_eq!(cancel("t2", true).await, Intervention::NotFound);
    assert_eq!(cancel("t1", false).await, Intervention::Done);
    tokio::time::sleep(SECOND).await;
    assert_eq!(agency.show(id).await.state, State::Running, "that transaction was rolled back");
    assert_eq!(cancel("t1", true).await, Intervention::Done);
    let view = agency.ends(id).await;
    ended_as(&view, State::Compensated);
    assert_eq!(view.failure.unwrap().reason, "CANCELLED");
    assert_eq!(agency.desk.asked(), ["Book t1", "Pay t1", "Refund t1", "Unbook t1"]);
    assert_eq!(cancel("t1", true).await, Intervention::NotNow);
}
