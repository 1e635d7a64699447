//! Questions over the broker: a command that waits for its answer.
//!
//! A question is a command with an address to answer to. It goes to the command's destination like
//! any other, so one consumer of the group answers it; the answer comes straight to the asking
//! process ([`Broker::answer`](crate::Broker::answer)) and is kept nowhere. What is asked may be done
//! although no answer comes: a question whose time is over has an unknown outcome, and asking again
//! asks twice. What must be done once belongs into a saga or behind an inbox.
//!
//! ```
//! # use antiphon_messaging::{Answer, Command, Consumer, Fail, Messaging, Payload, Requests};
//! # async fn example<GetQuote: Command + Default, Quote: Payload + Default>(messaging: Messaging)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! // Who answers:
//! let consumer = Consumer::group("pricing.questions")
//!     .answer(async |_: GetQuote| -> Result<Quote, antiphon_core::Status> { Ok(Quote::default()) });
//! // Who asks:
//! let (requests, desk) = Requests::new(&messaging, "orders")?;   // the application runs `desk`
//! let quote: Quote = requests.ask(&GetQuote::default()).await?;
//! # let _ = (consumer, desk, quote); Ok(()) }
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{
    BoxError, BoxFuture, Clock, Code, Component, Context, Health, MessageId, Retry, RetryPolicy,
    Shutdown, Stage, Status,
};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::any_broker::AnyBroker;
use crate::consumer::{ConsumerError, Messaging};
use crate::contract::{Command, Payload};
use crate::fail::Fail;
use crate::handler::{Handler, Incoming};
use crate::message::Message;
use crate::port::{Inbox, PublishErrorKind};

/// How long an answer is waited for by who has no deadline.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many questions may wait for their answers at a time.
const WAITING_MAX: usize = 10_000;
/// The waits between attempts to open an inbox.
const REOPEN: RetryPolicy =
    RetryPolicy::exponential(Duration::from_millis(100), Duration::from_secs(5));

mod name {
    /// Where to answer to.
    pub(super) const REPLY_TO: &str = "replyto";
    /// The question that is answered.
    pub(super) const QUESTION: &str = "questionid";
    /// The code of a refusal, by its name.
    pub(super) const CODE: &str = "statuscode";
    /// What happened, for people.
    pub(super) const MESSAGE: &str = "statusmessage";
}

/// Asks questions. Cheap to clone; clones share one inbox.
#[derive(Clone)]
pub struct Requests(Arc<Shared>);

struct Shared {
    broker: AnyBroker,
    service: Arc<str>,
    clock: Clock,
    waiting: Mutex<HashMap<MessageId, oneshot::Sender<Message>>>,
    /// The address of the inbox, while there is one.
    address: watch::Sender<Option<Arc<str>>>,
}

impl Requests {
    /// For a service, over its broker; with the component that takes answers in.
    ///
    /// # Errors
    /// The broker carries no answers.
    pub fn new(messaging: &Messaging, service: &str) -> Result<(Self, AnswerDesk), ConsumerError> {
        if !messaging.broker.capabilities().answers {
            return Err(ConsumerError {
                group: service.to_owned(),
                problem: "the broker carries no answers to a process; ask by a call, or use a \
                          saga"
                    .to_owned(),
            });
        }
        let shared = Arc::new(Shared {
            broker: messaging.broker.clone(),
            service: service.into(),
            clock: messaging.clock.clone(),
            waiting: Mutex::default(),
            address: watch::Sender::new(None),
        });
        let desk = AnswerDesk {
            name: format!("answers to {service}"),
            shared: Arc::clone(&shared),
            health: messaging.health.clone(),
        };
        Ok((Self(shared), desk))
    }

    /// Asks, and waits for the answer until the deadline of the current context, or for ten
    /// seconds without one.
    ///
    /// # Errors
    /// What the answerer refused with. DEADLINE_EXCEEDED when no answer came in time: it may have
    /// been done. UNAVAILABLE when the question certainly was not sent; RESOURCE_EXHAUSTED when too
    /// many questions wait.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the question; it may be done.
    pub async fn ask<C: Command, R: Payload>(&self, command: &C) -> Result<R, Status> {
        let context = Context::current();
        let remaining = context.remaining().unwrap_or(PATIENCE);
        let give_up = Instant::now() + remaining;
        let over =
            || Status::new(Code::DeadlineExceeded, "no answer came in time; it may have been done");
        let address = tokio::time::timeout_at(give_up, self.address()).await.map_err(|_| {
            Status::unavailable("the broker has opened no inbox for answers; nothing was asked")
        })??;
        let now = self.0.clock.now();
        let mut message = Message {
            id: MessageId::new(now),
            topic: C::DESTINATION.to_owned(),
            kind: C::KIND.to_owned(),
            source: self.0.service.to_string(),
            key: command.key(),
            time: now,
            not_before: None,
            attributes: BTreeMap::from([(name::REPLY_TO.to_owned(), address.to_string())]),
            body: command.encode_to_vec().into(),
        };
        let context = context.with_deadline(give_up);
        message.inject(&context);
        message.inject_deadline(&context, now);
        let (question, answer) = self.0.wait_for(message.id)?;
        let sent = self.0.broker.publish(vec![message]);
        match tokio::time::timeout_at(give_up, sent).await.map_err(|_| over())?.pop() {
            Some(Ok(_)) => {}
            Some(Err(error)) if error.kind == PublishErrorKind::Unroutable => {
                return Err(Status::unavailable("nobody answers such questions").with_source(error));
            }
            Some(Err(error)) if error.sent == crate::Sent::No => {
                return Err(Status::unavailable("the question was not sent").with_source(error));
            }
            // It may have arrived; then an answer comes.
            Some(Err(_)) | None => {}
        }
        let answered = tokio::time::timeout_at(give_up, answer).await;
        drop(question);
        let answer = answered.map_err(|_| over())?.map_err(|_| {
            Status::unavailable("the inbox for answers was lost; it may have been done")
        })?;
        read::<R>(&answer)
    }

    /// The address to answer to, once there is one.
    async fn address(&self) -> Result<Arc<str>, Status> {
        let mut addresses = self.0.address.subscribe();
        let found = addresses.wait_for(Option::is_some).await;
        let found = found.ok().and_then(|address| address.clone());
        found.ok_or_else(|| Status::unavailable("the process is ending"))
    }
}

/// A question that waits; forgotten when it is dropped.
struct Question<'a> {
    shared: &'a Shared,
    id: MessageId,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.shared.waiting.lock().remove(&self.id);
    }
}

impl Shared {
    fn wait_for(
        &self,
        id: MessageId,
    ) -> Result<(Question<'_>, oneshot::Receiver<Message>), Status> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        if waiting.len() >= WAITING_MAX {
            return Err(Status::new(
                Code::ResourceExhausted,
                "too many questions wait for their answers",
            ));
        }
        waiting.insert(id, sender);
        Ok((Question { shared: self, id }, receiver))
    }

    /// Gives an answer to who waits for it; late ones are dropped.
    fn answered(&self, answer: Message) {
        let question = answer.attribute(name::QUESTION).and_then(|id| id.parse().ok());
        let waiting = question.and_then(|id: MessageId| self.waiting.lock().remove(&id));
        match waiting {
            Some(waiting) => drop(waiting.send(answer)),
            None => tracing::debug!(id = %answer.id, "an answer came that nobody waits for"),
        }
    }
}

fn read<R: Payload>(answer: &Message) -> Result<R, Status> {
    if let Some(code) = answer.attribute(name::CODE) {
        let code = Code::from_name(code).unwrap_or(Code::Unknown);
        let text = answer.attribute(name::MESSAGE).unwrap_or_default().to_owned();
        return Err(Status::new(code, text));
    }
    if answer.kind != R::KIND {
        let text = format!("the answer is a {}, not a {}", answer.kind, R::KIND);
        return Err(Status::internal(BoxError::from(text)));
    }
    R::decode_from_slice(&answer.body).map_err(Status::internal)
}

/// Takes answers in. The application runs it beside the consumers.
#[must_use = "no answer arrives until it is run"]
pub struct AnswerDesk {
    name: String,
    shared: Arc<Shared>,
    health: Health,
}

impl AnswerDesk {
    /// Takes answers in until the inbox ends.
    async fn attend(&self, mut inbox: Box<dyn Inbox>) {
        self.shared.address.send_replace(Some(inbox.address().into()));
        self.health.well(&self.name);
        while let Some(answer) = inbox.receive().await {
            self.shared.answered(answer);
        }
        self.shared.address.send_replace(None);
        // Their answers go to an address that is no more.
        self.shared.waiting.lock().clear();
    }
}

impl Component for AnswerDesk {
    fn name(&self) -> &str {
        &self.name
    }

    fn stage(&self) -> Stage {
        // As long as calls are answered, they may ask.
        Stage::Consume
    }

    async fn run(self, shutdown: Shutdown) -> Result<(), BoxError> {
        let mut failures = 0;
        while let Some(opened) = shutdown.unless_draining(self.shared.broker.inbox()).await {
            match opened {
                Ok(inbox) => {
                    failures = 0;
                    if shutdown.unless_draining(self.attend(inbox)).await.is_none() {
                        break;
                    }
                    self.health.unwell(&self.name, "the inbox for answers was lost");
                }
                Err(error) if error.transient => {
                    self.health.unwell(&self.name, error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
            failures += 1;
            let wait = match REOPEN.decide(failures, Retry::Outage, fastrand::f64()) {
                antiphon_core::retry::Decision::RetryAfter(wait) => wait,
                antiphon_core::retry::Decision::GiveUp => REOPEN.delay_max,
            };
            if shutdown.unless_draining(tokio::time::sleep(wait)).await.is_none() {
                break;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("service", &self.0.service).finish_non_exhaustive()
    }
}

impl fmt::Debug for AnswerDesk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswerDesk").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Answers questions of one type. Async functions with one argument are such answerers.
pub trait Answer<C: Command, R: Payload>: Send + Sync + 'static {
    /// Answers. A refusal goes to the asker, who decides whether to ask again.
    fn answer(&self, command: C) -> impl Future<Output = Result<R, Status>> + Send;
}

impl<C, R, F, Fut> Answer<C, R> for F
where
    C: Command,
    R: Payload,
    F: Fn(C) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Status>> + Send,
{
    fn answer(&self, command: C) -> impl Future<Output = Result<R, Status>> + Send {
        self(command)
    }
}

/// An [`Answer`] as a [`Handler`] that sends what it says.
pub(crate) struct Answering<C, R, A> {
    pub(crate) answerer: A,
    pub(crate) broker: AnyBroker,
    pub(crate) clock: Clock,
    pub(crate) types: PhantomData<fn(C) -> R>,
}

impl<C: Command, R: Payload, A: Answer<C, R>> Answering<C, R, A> {
    async fn answer(&self, incoming: &Incoming) -> Result<(), Fail> {
        let question = &*incoming.message;
        let answered = match incoming.decode::<C>() {
            Ok(command) => self.answerer.answer(command).await,
            Err(fail) => Err(Status::invalid_argument("the question does not decode")
                .with_source(BoxError::from(fail.describe()))),
        };
        let Some(address) = question.attribute(name::REPLY_TO) else {
            // A command that nobody waits for: its failure is the engine's to deal with.
            return answered.map(drop).map_err(Fail::from);
        };
        let answer = self.message(question, answered);
        match self.broker.answer(address, answer).await {
            Ok(()) => Ok(()),
            // Who asked is gone, or will be before it is tried again.
            Err(error) => {
                tracing::debug!(%error, id = %question.id, "an answer was not sent");
                Ok(())
            }
        }
    }

    fn message(&self, question: &Message, answered: Result<R, Status>) -> Message {
        let now = self.clock.now();
        let mut attributes = BTreeMap::from([(name::QUESTION.to_owned(), question.id.to_string())]);
        let body = match answered {
            Ok(answer) => answer.encode_to_vec().into(),
            Err(status) => {
                attributes.insert(name::CODE.to_owned(), status.code().name().to_owned());
                attributes.insert(name::MESSAGE.to_owned(), status.message().to_owned());
                Bytes::new()
            }
        };
        let mut message = Message {
            id: MessageId::new(now),
            topic: question.topic.clone(),
            kind: R::KIND.to_owned(),
            source: question.topic.clone(),
            key: question.key.clone(),
            time: now,
            not_before: None,
            attributes,
            body,
        };
        message.inject(&Context::current());
        message
    }
}

impl<C: Command, R: Payload, A: Answer<C, R>> Handler for Answering<C, R, A> {
    fn handles(&self, kind: &str) -> bool {
        kind == C::KIND
    }

    fn handle<'a>(&'a self, incoming: &'a Incoming) -> BoxFuture<'a, Result<(), Fail>> {
        Box::pin(self.answer(incoming))
    }
}
