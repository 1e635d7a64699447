//! Definitions that contradict themselves are refused, and say why.

use antiphon_core::RetryPolicy;
use antiphon_outbox::Tx;
use antiphon_saga::{Rejection, Saga, SagaBuilder, Step};
use antiphon_testing::MemoryStore;

use crate::messages::{Book, HasPaid, Pay, Refund, Send, Trip, Unbook};

type Builder = SagaBuilder<Trip, MemoryStore>;
type OneStep = Step<Trip, MemoryStore>;

fn define() -> Builder {
    Saga::define("trip", 3)
}

fn book() -> OneStep {
    Step::remote("book", |trip: &Trip| Book::of(&trip.id))
}

fn pay() -> OneStep {
    Step::remote("pay", |trip: &Trip| Pay::of(&trip.id))
}

fn send() -> OneStep {
    Step::remote("send", |trip: &Trip| Send::of(&trip.id))
}

async fn nothing(_: &mut Trip, _: &mut Tx<MemoryStore>) -> Result<(), Rejection> {
    Ok(())
}

fn refusal(builder: Builder) -> String {
    builder.build().expect_err("it contradicts itself").to_string()
}

#[test]
fn a_definition_may_be_a_sequence_a_graph_or_a_single_step() {
    for builder in [
        define().step(book().nothing_to_undo()),
        define()
            .step(book().undo(|trip| Unbook::of(&trip.id)))
            .step(pay().undo(|trip| Refund::of(&trip.id)))
            .step(Step::local("confirm", nothing).pivot())
            .step(send().forward_only()),
        define()
            .step(book().nothing_to_undo().after([]))
            .step(pay().nothing_to_undo().after([]))
            .step(Step::local("confirm", nothing).pivot().after(["book", "pay"]))
            .step(send().forward_only().after(["confirm"]))
            .step(Step::local("tell", nothing).forward_only().after(["confirm"])),
        define().step(
            pay()
                .at_most_once()
                .query(|trip| HasPaid::of(&trip.id))
                .undo(|trip| Refund::of(&trip.id)),
        ),
    ] {
        let saga = builder.build().unwrap();
        assert_eq!((saga.kind(), saga.version()), ("trip", 3));
    }
}

#[test]
fn what_is_wrong_is_named_with_its_step() {
    let undo = |trip: &Trip| Unbook::of(&trip.id);
    for (builder, expected) in [
        (define(), "saga trip, version 3: has no steps"),
        (define().step(book()), "step book: needs either an undo or nothing_to_undo"),
        (
            define().step(book().undo(undo).nothing_to_undo()),
            "step book: needs either an undo or nothing_to_undo",
        ),
        (
            define().step(book().nothing_to_undo()).step(book().nothing_to_undo()),
            "step book: has the name of another step",
        ),
        (
            define().step(book().nothing_to_undo().after(["pay"])),
            "step book: comes after a step that is not declared before it",
        ),
        (
            define().step(book().pivot().undo(undo)),
            "step book: says how it is undone, but is never undone",
        ),
        (define().step(book().pivot()).step(pay().pivot()), "step pay: is a second pivot"),
        (
            define().step(book().nothing_to_undo()).step(send().forward_only()),
            "step send: is forward-only, but there is no pivot",
        ),
        (
            define().step(book().pivot()).step(send().forward_only().after([])),
            "step send: is forward-only, but does not come after the pivot",
        ),
        (
            define().step(book().pivot()).step(pay().nothing_to_undo()),
            "step pay: is not forward-only, but does not come before the pivot",
        ),
        (
            define().step(Step::local("note", nothing).nothing_to_undo().at_most_once()),
            "step note: is local, so it happens at most once in any case",
        ),
        (
            define().step(book().nothing_to_undo().query(|trip| HasPaid::of(&trip.id))),
            "step book: has a query, which only at_most_once steps need",
        ),
        (
            define().step(book().nothing_to_undo().retry(RetryPolicy::default().attempts(0))),
            "step book: is to be tried 0 times",
        ),
        (
            define().step(Step::local("note", nothing).undo(undo)),
            "step note: a local step is undone by undo_local",
        ),
        (
            define().step(book().undo_local(nothing)),
            "step book: a participant's step is undone by undo",
        ),
        (
            define()
                .step(Step::remote("Book!", |trip: &Trip| Book::of(&trip.id)).nothing_to_undo()),
            "step Book!: may only be named by lower-case letters, digits and dashes",
        ),
    ] {
        let text = refusal(builder);
        assert!(text.contains(expected), "{text}\n    should say: {expected}");
    }
}
