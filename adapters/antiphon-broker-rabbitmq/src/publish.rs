//! Sends messages and waits for their confirmation.
//!
//! One task sends for everybody, on one channel with confirms: so messages are sent in the order in
//! which they were handed over, many are on their way at a time and share their packets, and what
//! the server sends back can be told apart. That needs care: the client library hands a returned
//! message to whichever confirmation comes next. It is known by its id here, and believed before
//! any confirmation of the same moment ([`Desk::take_in`]).
//!
//! When the channel ends, what was sent and not confirmed may have arrived. The rest of the batches
//! it belongs to is not sent any more: a later message of a key must not overtake an earlier one.

mod desk;
mod verdict;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use antiphon_messaging::{Message, PublishError, PublishErrorKind, Receipt, Sent, lane_of};
use lapin::BasicProperties;
use lapin::types::ShortString;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::connection::Line;
use crate::envelope;
use crate::error::not_taken;
use crate::names;
use crate::settings::Unread;
use crate::topology::{Declared, Layout};

/// How many batches may wait for the task; others wait for these.
const BATCHES_MAX: usize = 64;

/// What the publisher goes by.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) window: usize,
    pub(crate) timeout: Duration,
    pub(crate) message_max: usize,
    pub(crate) unread: Unread,
}

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum To {
    /// The exchange of a topic.
    Topic,
    /// One queue of this name: an inbox.
    Inbox,
}

/// A message that is ready to be sent.
struct Letter {
    to: To,
    /// The topic, or the address of the inbox.
    name: ShortString,
    route: &'static str,
    key: String,
    id: String,
    properties: BasicProperties,
    body: bytes::Bytes,
}

type Answer = Result<Receipt, PublishError>;

/// Several messages that are answered together. What cannot be sent has its answer already.
struct Batch {
    letters: Vec<Result<Letter, PublishError>>,
    reply: oneshot::Sender<Vec<Answer>>,
}

/// The handle of the task that sends.
pub(crate) struct Publisher {
    batches: mpsc::Sender<Batch>,
    rules: Rules,
    /// The server's own limit, once it has refused something.
    server_max: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Publisher {
    pub(crate) fn start(
        line: Arc<Line>,
        rules: Rules,
        declared: Arc<Declared>,
        layout: Layout,
    ) -> Self {
        let (batches, waiting) = mpsc::channel(BATCHES_MAX);
        let server_max = Arc::new(AtomicUsize::new(usize::MAX));
        let desk = desk::Desk::new(line, rules.clone(), declared, layout, Arc::clone(&server_max));
        Self { batches, rules, server_max, task: tokio::spawn(desk.run(waiting)) }
    }

    /// Sends messages to their topics; answers in their order.
    pub(crate) async fn publish(&self, messages: Vec<Message>) -> Vec<Answer> {
        let topics: Vec<String> = messages.iter().map(|message| message.topic.clone()).collect();
        let letters = messages.into_iter().map(|message| self.to_topic(message)).collect();
        self.send(letters).await.unwrap_or_else(|| {
            let closed = |topic: &String| Err(unknown(topic, "the broker was closed"));
            topics.iter().map(closed).collect()
        })
    }

    /// Sends a message to one inbox. Whether anybody has it is not known.
    pub(crate) async fn answer(&self, address: &str, message: Message) -> Result<(), PublishError> {
        let letter = self.to_inbox(address, message);
        let answers = self.send(vec![letter]).await;
        match answers.and_then(|answers| answers.into_iter().next()) {
            Some(answer) => answer.map(|_receipt| ()),
            None => Err(unknown(address, "the broker was closed")),
        }
    }

    async fn send(&self, letters: Vec<Result<Letter, PublishError>>) -> Option<Vec<Answer>> {
        let (reply, answers) = oneshot::channel();
        self.batches.send(Batch { letters, reply }).await.ok()?;
        answers.await.ok()
    }

    fn to_topic(&self, message: Message) -> Result<Letter, PublishError> {
        if let Err(problem) = names::check(&message.topic) {
            // Such a topic cannot be declared, so it does not exist.
            let (kind, why) = (PublishErrorKind::Unroutable, format!("its topic: {problem}"));
            return Err(not_taken(&message.topic, kind, Sent::No, why));
        }
        if message.not_before.is_some() {
            let why = "RabbitMQ does not delay messages durably; send it when it is due";
            return Err(not_taken(&message.topic, PublishErrorKind::Rejected, Sent::No, why));
        }
        let route = names::route(lane_of(&message.key));
        let name = message.topic.clone();
        self.letter(To::Topic, &name, route, message)
    }

    fn to_inbox(&self, address: &str, message: Message) -> Result<Letter, PublishError> {
        // Every queue has an address of this kind: anybody could have answers put into a group.
        if !address.starts_with(names::INBOX) || address.len() > 200 {
            let why = "this is not the address of an inbox of this broker";
            return Err(not_taken(address, PublishErrorKind::Rejected, Sent::No, why));
        }
        self.letter(To::Inbox, address, "", message)
    }

    fn letter(
        &self,
        to: To,
        name: &str,
        route: &'static str,
        message: Message,
    ) -> Result<Letter, PublishError> {
        let refuse = |why: String| Err(not_taken(name, PublishErrorKind::TooLarge, Sent::No, why));
        let size = message.size();
        if size > self.rules.message_max {
            let limit = self.rules.message_max;
            return refuse(format!(
                "it has {size} bytes; `broker.rabbitmq.message_max` is {limit}"
            ));
        }
        let server_max = self.server_max.load(Ordering::Relaxed);
        if message.body.len() > server_max {
            let size = message.body.len();
            return refuse(format!(
                "its body has {size} bytes; the server takes {server_max} (`max_message_size`)"
            ));
        }
        let properties = match envelope::properties(&message) {
            Ok(properties) => properties,
            Err(why) => return refuse(why),
        };
        let id = message.id.to_string();
        let Message { key, body, .. } = message;
        Ok(Letter { to, name: name.into(), route, key, id, properties, body })
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The message may have arrived or not.
fn unknown(topic: &str, why: &str) -> PublishError {
    not_taken(topic, PublishErrorKind::Disconnected, Sent::Maybe, why)
}
