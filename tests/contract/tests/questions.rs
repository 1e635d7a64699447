//! Questions over the broker, with generated types.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use antiphon_broker_memory::MemoryBroker;
use antiphon_core::{Code, Component, Context, Health, ShutdownHandle, Status};
use antiphon_messaging::{AnyBroker, Consumer, Messaging, Requests};
use antiphon_telemetry::Telemetry;
use contract_tests::sample::v1::{Book, BookAdded, RemoveBookLater};
use tokio::time::Instant;

/// A process that asks; when `answered`, another consumer answers: 1 with a book, 2 with a refusal,
/// 3 never.
struct Desk {
    requests: Requests,
    handle: ShutdownHandle,
}

async fn desk(answered: bool) -> Desk {
    let broker = AnyBroker::new(MemoryBroker::default());
    let messaging = Messaging::new(broker, Telemetry::new(), Health::new());
    let (handle, shutdown) = ShutdownHandle::new();
    if answered {
        let worker = Consumer::group("library.questions")
            .answer(async |question: RemoveBookLater| -> Result<BookAdded, Status> {
                match question.number {
                    1 => {
                        let book = Book { name: "Faust".into(), ..Default::default() };
                        Ok(BookAdded { book: book.into(), ..Default::default() })
                    }
                    2 => Err(Status::new(Code::FailedPrecondition, "Ada has it")),
                    _ => std::future::pending().await,
                }
            })
            .build(&messaging)
            .unwrap();
        messaging.broker.declare(worker.topology()).await.unwrap();
        tokio::spawn(worker.run(shutdown.clone()));
    }
    let (requests, desk) = Requests::new(&messaging, "orders").unwrap();
    tokio::spawn(desk.run(shutdown));
    Desk { requests, handle }
}

impl Desk {
    async fn ask(&self, number: i64) -> Result<BookAdded, Status> {
        let question = RemoveBookLater { number, ..Default::default() };
        let context = Context::root().with_deadline(Instant::now() + Duration::from_secs(3));
        context.scope(self.requests.ask(&question)).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_is_answered_or_refused_by_who_reads_the_destination() {
    let desk = desk(true).await;
    let answer = desk.ask(1).await.unwrap();
    assert_eq!(answer.book.name, "Faust");
    let refusal = desk.ask(2).await.unwrap_err();
    assert_eq!((refusal.code(), refusal.message()), (Code::FailedPrecondition, "Ada has it"));
    desk.handle.cut();
}

#[tokio::test(start_paused = true)]
async fn many_questions_at_once_get_their_own_answers() {
    let desk = desk(true).await;
    let asked = (0..50).map(|n| desk.ask(1 + n % 2));
    let answers = futures_util::future::join_all(asked).await;
    for (n, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.is_ok(), n % 2 == 0, "{n}");
    }
    desk.handle.cut();
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_the_deadline_ends_it() {
    let desk = desk(true).await;
    let begun = Instant::now();
    let error = desk.ask(3).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert_eq!(begun.elapsed().as_secs(), 3);
    desk.handle.cut();
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_nobody_reads_is_told_apart_from_silence() {
    let desk = desk(false).await;
    let error = desk.ask(1).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(error.message().contains("nobody answers"), "{error}");
    desk.handle.cut();
}
