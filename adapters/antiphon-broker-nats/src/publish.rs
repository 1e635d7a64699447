//! Publishing: many messages on their way, each confirmed by the stream that has stored it.
//!
//! Confirmations arrive at one subscription of the connection; the last word of the subject says which
//! message is meant. A confirmation that does not come in time, or not before the connection ends,
//! leaves the outcome unknown ([`Sent::Maybe`]): the same message is sent again with the same id, by
//! which the server recognises it within the duplicate window.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use antiphon_core::BoxError;
use antiphon_messaging::{Message, PublishError, PublishErrorKind, Receipt, Sent};
use async_nats::{StatusCode, Subject, Subscriber};
use futures_util::StreamExt;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{Notify, Semaphore, TryAcquireError};
use tokio::time::{Instant, timeout_at};

use crate::connection::{Link, Supervisor};
use crate::settings::Settings;
use crate::{names, topology, wire};

/// The most that is kept free for headers in a message of the largest size.
const HEADER_BYTES_MAX: usize = 8 * 1024;

/// The largest [`Message::size`] that is taken, given what the server takes.
pub(crate) fn message_bytes_max(payload_max: usize) -> usize {
    payload_max - HEADER_BYTES_MAX.min(payload_max / 4)
}

/// What became of a message.
#[derive(Clone, Debug)]
enum Outcome {
    Stored,
    /// No stream takes its subject.
    NoStream,
    /// The stream does not want it.
    Refused {
        code: u64,
        text: String,
    },
    /// Publishing to its subject is not allowed.
    Denied,
    Unknown(&'static str),
}

/// Messages that were given together, and what became of them.
#[derive(Debug)]
pub(crate) struct Batch {
    state: Mutex<BatchState>,
    /// Rung when nothing is open any more.
    done: Notify,
}

#[derive(Debug)]
struct BatchState {
    outcomes: Vec<Option<Outcome>>,
    /// How many were sent and have no outcome.
    open: usize,
    /// Subjects of which a message was not stored: later ones must not overtake it.
    broken: Vec<Subject>,
}

impl Batch {
    fn new(count: usize) -> Arc<Self> {
        let state = BatchState { outcomes: vec![None; count], open: 0, broken: Vec::new() };
        Arc::new(Self { state: Mutex::new(state), done: Notify::new() })
    }

    fn resolve(&self, slot: &Slot, outcome: Outcome) {
        let mut state = self.state.lock();
        if !matches!(outcome, Outcome::Stored) && !state.broken.contains(&slot.subject) {
            state.broken.push(slot.subject.clone());
        }
        state.outcomes[slot.index] = Some(outcome);
        state.open -= 1;
        if state.open == 0 {
            self.done.notify_one();
        }
    }
}

#[derive(Debug)]
struct Slot {
    batch: Arc<Batch>,
    index: usize,
    subject: Subject,
}

/// What waits for its confirmation, by number. Numbers rise, and confirmations come nearly in order.
#[derive(Debug)]
struct Ring {
    first: u64,
    slots: VecDeque<Option<Slot>>,
    closed: bool,
    /// When the last confirmation came.
    heard: Instant,
    inbox: String,
}

impl Ring {
    fn remove(&mut self, number: u64) -> Option<Slot> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let slot = self.slots.get_mut(at)?.take();
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.first += 1;
        }
        slot
    }
}

/// The messages of one connection that wait for their confirmation.
#[derive(Debug)]
pub(crate) struct Confirms {
    ring: Mutex<Ring>,
    window: Semaphore,
}

impl Confirms {
    pub(crate) fn new(window: usize) -> Self {
        let (slots, heard) = (VecDeque::new(), Instant::now());
        let ring = Ring { first: 0, slots, closed: false, heard, inbox: String::new() };
        Self { ring: Mutex::new(ring), window: Semaphore::new(window) }
    }

    /// Takes in what arrives, until the subscription ends with its connection.
    pub(crate) fn listen(self: &Arc<Self>, inbox: String, mut answers: Subscriber) {
        self.ring.lock().inbox = inbox;
        let confirms = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(answer) = answers.next().await {
                confirms.take_in(&answer);
            }
            confirms.close();
        });
    }

    fn take_in(&self, answer: &async_nats::Message) {
        let Some((_, number)) = answer.subject.rsplit_once('.') else { return };
        let Ok(number) = number.parse() else { return };
        let slot = {
            let mut ring = self.ring.lock();
            ring.heard = Instant::now();
            ring.remove(number)
        };
        if let Some(slot) = slot {
            self.window.add_permits(1);
            slot.batch.resolve(&slot, outcome(answer));
        }
    }

    /// A place for a message on its way: the subject where its confirmation is to arrive. `None` when
    /// the connection is over.
    fn register(
        &self,
        batch: &Arc<Batch>,
        index: usize,
        subject: &Subject,
    ) -> Option<(u64, String)> {
        batch.state.lock().open += 1;
        let mut ring = self.ring.lock();
        if ring.closed {
            batch.state.lock().open -= 1;
            return None;
        }
        let number = ring.first + u64::try_from(ring.slots.len()).unwrap_or(0);
        let (batch, subject) = (Arc::clone(batch), subject.clone());
        ring.slots.push_back(Some(Slot { batch, index, subject }));
        Some((number, format!("{}.{number}", ring.inbox)))
    }

    fn resolve_where(&self, which: impl Fn(&Slot) -> bool, outcome: &Outcome) {
        let mut taken = Vec::new();
        {
            let mut ring = self.ring.lock();
            for place in &mut ring.slots {
                if place.as_ref().is_some_and(&which) {
                    taken.extend(place.take());
                }
            }
        }
        self.window.add_permits(taken.len());
        for slot in taken {
            slot.batch.resolve(&slot, outcome.clone());
        }
    }

    /// Publishing to this subject is not allowed, so no confirmation will come.
    pub(crate) fn deny(&self, subject: &str) {
        self.resolve_where(|slot| &*slot.subject == subject, &Outcome::Denied);
    }

    /// The connection is over: nothing will be confirmed any more.
    pub(crate) fn close(&self) {
        self.ring.lock().closed = true;
        self.resolve_where(|_| true, &Outcome::Unknown("the connection ended before it answered"));
    }

    /// Gives up waiting for a batch; whether the server has been silent since `since`.
    fn give_up(&self, batch: &Arc<Batch>, since: Instant) -> bool {
        let late = Outcome::Unknown("the server did not answer in time");
        self.resolve_where(|slot| Arc::ptr_eq(&slot.batch, batch), &late);
        self.ring.lock().heard < since
    }

    /// Waits until the server has taken everything that was sent before.
    pub(crate) async fn barrier(&self, link: &Link, deadline: Instant) -> Result<(), BoxError> {
        let batch = Batch::new(1);
        let subject = Subject::from_static("barrier");
        let (_, reply) = self.register(&batch, 0, &subject).ok_or("the connection is over")?;
        self.window.forget_permits(1);
        link.client.publish(reply, bytes::Bytes::new()).await?;
        if timeout_at(deadline, batch.done.notified()).await.is_err() {
            self.give_up(&batch, Instant::now());
        }
        match batch.state.lock().outcomes[0].take() {
            Some(Outcome::Stored) => Ok(()),
            _ => Err("the server did not answer in time".into()),
        }
    }
}

/// What a stream answers.
#[derive(Deserialize)]
struct Answer {
    error: Option<AnswerError>,
}

#[derive(Deserialize)]
struct AnswerError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

fn outcome(answer: &async_nats::Message) -> Outcome {
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        return Outcome::NoStream;
    }
    if answer.payload.is_empty() {
        return Outcome::Stored;
    }
    match serde_json::from_slice(&answer.payload) {
        Ok(Answer { error: None }) => Outcome::Stored,
        Ok(Answer { error: Some(error) }) => {
            Outcome::Refused { code: error.err_code, text: error.description }
        }
        Err(_) => Outcome::Unknown("the server's answer does not read"),
    }
}

/// Sends a batch and waits for the confirmations.
pub(crate) async fn publish(
    supervisor: &Supervisor,
    settings: &Settings,
    messages: Vec<Message>,
) -> Vec<Result<Receipt, PublishError>> {
    let begun = Instant::now();
    let deadline = begun + settings.publish_timeout.0;
    let link = match supervisor.now() {
        Some(link) => Some(link),
        None => supervisor.by(begun + settings.connect_timeout.0).await,
    };
    let Some(link) = link else {
        let away = |message: Message| {
            let why = "there is no connection to the server";
            Err(error(message.topic, PublishErrorKind::Disconnected, Sent::No, Some(why.into())))
        };
        return messages.into_iter().map(away).collect();
    };
    let batch = Batch::new(messages.len());
    let mut refused = BTreeMap::new();
    let mut topics = Vec::with_capacity(messages.len());
    let mut stop: Option<(PublishErrorKind, &'static str)> = None;
    for (index, message) in messages.into_iter().enumerate() {
        topics.push(message.topic.clone());
        let sent = match stop {
            Some((kind, why)) => Err((kind, why.into())),
            None => send(&link, &batch, index, message, deadline).await,
        };
        if let Err((kind, why)) = sent {
            if matches!(kind, PublishErrorKind::Disconnected)
                || (matches!(kind, PublishErrorKind::Overloaded) && Instant::now() >= deadline)
            {
                // What comes after is refused as well: messages of one key must not overtake.
                stop = Some((kind, "an earlier message of the batch was not sent"));
            }
            refused.insert(index, error(topics[index].clone(), kind, Sent::No, Some(why)));
        }
    }
    confirmed(&link, &batch, begun, deadline).await;
    let outcomes = std::mem::take(&mut batch.state.lock().outcomes);
    let routable = routable(&link, &topics, &outcomes).await;
    let answers =
        outcomes.into_iter().zip(topics).enumerate().map(|(index, (outcome, topic))| match refused
            .remove(&index)
        {
            Some(refused) => Err(refused),
            None => answer(topic, outcome, &routable),
        });
    answers.collect()
}

async fn confirmed(link: &Link, batch: &Arc<Batch>, begun: Instant, deadline: Instant) {
    loop {
        if batch.state.lock().open == 0 {
            return;
        }
        if timeout_at(deadline, batch.done.notified()).await.is_err() {
            if link.confirms.give_up(batch, begun) {
                link.lose("the server confirms nothing");
            }
            return;
        }
    }
}

/// Puts a message on its way. An error says that it is not.
async fn send(
    link: &Link,
    batch: &Arc<Batch>,
    index: usize,
    message: Message,
    deadline: Instant,
) -> Result<(), (PublishErrorKind, BoxError)> {
    let limit = message_bytes_max(link.payload_max);
    let size = message.size();
    if size > limit {
        let why = format!("it has {size} bytes; the server takes {limit}");
        return Err((PublishErrorKind::TooLarge, why.into()));
    }
    names::check_topic(&message.topic).map_err(|bad| (PublishErrorKind::Unroutable, bad.into()))?;
    let (headers, header_bytes) = wire::headers(&message);
    if header_bytes + message.body.len() > link.payload_max {
        let why = format!("its attributes take {header_bytes} bytes as headers, which is too much");
        return Err((PublishErrorKind::TooLarge, why.into()));
    }
    let subject = Subject::from(wire::subject(&message));
    {
        let state = batch.state.lock();
        if !state.broken.is_empty() && state.broken.contains(&subject) {
            let why = "an earlier message of its lane was not stored";
            return Err((PublishErrorKind::Overloaded, why.into()));
        }
    }
    match link.confirms.window.try_acquire() {
        Ok(permit) => permit.forget(),
        Err(TryAcquireError::NoPermits) => {
            match timeout_at(deadline, link.confirms.window.acquire()).await {
                Ok(Ok(permit)) => permit.forget(),
                _ => {
                    let why = "too many messages wait for their confirmation";
                    return Err((PublishErrorKind::Overloaded, why.into()));
                }
            }
        }
        Err(TryAcquireError::Closed) => {}
    }
    let over = || (PublishErrorKind::Disconnected, BoxError::from("the connection is over"));
    let Some((number, reply)) = link.confirms.register(batch, index, &subject) else {
        link.confirms.window.add_permits(1);
        return Err(over());
    };
    let published =
        link.client.publish_with_reply_and_headers(subject, reply, headers, message.body).await;
    if published.is_err() && link.confirms.ring.lock().remove(number).is_some() {
        batch.state.lock().open -= 1;
        link.confirms.window.add_permits(1);
        return Err(over());
    }
    Ok(())
}

/// Of the topics for which nobody answered, those that do have a stream.
async fn routable(
    link: &Link,
    topics: &[String],
    outcomes: &[Option<Outcome>],
) -> BTreeMap<String, bool> {
    let mut known = BTreeMap::new();
    for (topic, outcome) in topics.iter().zip(outcomes) {
        if matches!(outcome, Some(Outcome::NoStream)) && !known.contains_key(topic) {
            let missing = topology::is_missing(link, topic).await;
            known.insert(topic.clone(), !missing);
        }
    }
    known
}

fn answer(
    topic: String,
    outcome: Option<Outcome>,
    routable: &BTreeMap<String, bool>,
) -> Result<Receipt, PublishError> {
    use PublishErrorKind as Kind;
    let (kind, sent, why) = match outcome {
        Some(Outcome::Stored) => return Ok(Receipt),
        Some(Outcome::NoStream) if routable.get(&topic).copied().unwrap_or(false) => {
            (Kind::Disconnected, Sent::No, "its stream does not answer at present".to_owned())
        }
        Some(Outcome::NoStream) => {
            (Kind::Unroutable, Sent::No, "no stream has this topic; declare it first".to_owned())
        }
        Some(Outcome::Denied) => {
            (Kind::Unauthorized, Sent::No, "publishing to its subject is not allowed".to_owned())
        }
        Some(Outcome::Refused { code, text }) => {
            let (kind, sent) = meaning(code);
            (kind, sent, format!("{text} ({code})"))
        }
        Some(Outcome::Unknown(why)) => (Kind::Disconnected, Sent::Maybe, why.to_owned()),
        None => (Kind::Disconnected, Sent::Maybe, "no answer".to_owned()),
    };
    Err(error(topic, kind, sent, Some(why.into())))
}

/// What the codes of a stream's refusals mean.
fn meaning(code: u64) -> (PublishErrorKind, Sent) {
    match code {
        // Larger than the stream's `max_msg_size`.
        10_054 => (PublishErrorKind::TooLarge, Sent::No),
        // No memory or disk for the account, no leader.
        10_023 | 10_047 | 10_008 | 10_009 => (PublishErrorKind::Overloaded, Sent::No),
        // Storing failed: the limits of the stream, or the disk.
        10_077 => (PublishErrorKind::Overloaded, Sent::Maybe),
        // Sealed.
        10_109 => (PublishErrorKind::Rejected, Sent::No),
        _ => (PublishErrorKind::Overloaded, Sent::Maybe),
    }
}

pub(crate) fn error(
    topic: String,
    kind: PublishErrorKind,
    sent: Sent,
    source: Option<BoxError>,
) -> PublishError {
    PublishError { topic, kind, sent, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn confirmations_find_their_messages_in_any_order() {
        let confirms = Confirms::new(8);
        let batch = Batch::new(3);
        let subject = Subject::from_static("t.L1");
        let numbers: Vec<u64> = (0..3)
            .map(|index| confirms.register(&batch, index, &subject).expect("it is open").0)
            .collect();
        for (at, outcome) in [(2, Outcome::Stored), (0, Outcome::NoStream)] {
            let slot = confirms.ring.lock().remove(numbers[at]).expect("it waits");
            slot.batch.resolve(&slot, outcome);
        }
        assert!(confirms.ring.lock().remove(numbers[2]).is_none(), "each only once");
        assert_eq!(batch.state.lock().broken, [subject]);
        confirms.close();
        let outcomes = std::mem::take(&mut batch.state.lock().outcomes);
        assert!(matches!(
            outcomes.as_slice(),
            [Some(Outcome::NoStream), Some(Outcome::Unknown(_)), Some(Outcome::Stored)]
        ));
        assert!(confirms.register(&batch, 0, &Subject::from_static("t.L1")).is_none());
    }

    #[test]
    fn only_a_certain_refusal_is_certain() {
        let routable = BTreeMap::from([("here".to_owned(), true)]);
        let kind = |topic: &str, outcome| {
            let error = answer(topic.to_owned(), outcome, &routable).expect_err("it is refused");
            (error.kind, error.sent)
        };
        use PublishErrorKind as Kind;
        assert_eq!(kind("here", Some(Outcome::NoStream)), (Kind::Disconnected, Sent::No));
        assert_eq!(kind("gone", Some(Outcome::NoStream)), (Kind::Unroutable, Sent::No));
        assert_eq!(kind("here", Some(Outcome::Unknown("?"))), (Kind::Disconnected, Sent::Maybe));
        let refused = |code| Some(Outcome::Refused { code, text: String::new() });
        assert_eq!(kind("here", refused(10_054)), (Kind::TooLarge, Sent::No));
        assert_eq!(kind("here", refused(10_077)), (Kind::Overloaded, Sent::Maybe));
    }

    #[test]
    fn small_servers_take_messages_as_well() {
        assert_eq!(message_bytes_max(1 << 20), (1 << 20) - 8_192);
        assert_eq!(message_bytes_max(1_024), 768);
    }
}
