//! Publishing: batches of commands in one go, each answered with the id of its entry.
//!
//! A batch is sent in parts, and no part before the one before it is answered: when something is not
//! stored, nothing of its stream that comes after overtakes it, but for the rest of its own part.

use std::collections::BTreeSet;

use antiphon_core::BoxError;
use antiphon_messaging::{Message, PublishError, PublishErrorKind, Receipt, Sent};
use redis::{Pipeline, Value};
use tokio::time::{Instant, timeout_at};

use crate::connection::{Link, Supervisor};
use crate::error::meaning;
use crate::names::{self, Names};
use crate::settings::Settings;
use crate::wire;

/// The most that is sent in one part.
const PART_MAX: usize = 1_024;
const PART_BYTES_MAX: usize = 4 * 1024 * 1024;

type Answer = Result<Receipt, PublishError>;

/// Sends a batch and waits for the answers.
pub(crate) async fn publish(
    supervisor: &Supervisor,
    settings: &Settings,
    names: &Names,
    messages: Vec<Message>,
) -> Vec<Answer> {
    let begun = Instant::now();
    let link = match supervisor.now() {
        Some(link) => Some(link),
        None => supervisor.by(begun + settings.connect_timeout.0).await,
    };
    let Some(link) = link else {
        let why = "there is no connection to the server";
        let away = |message: Message| {
            Err(error(message.topic, PublishErrorKind::Disconnected, Sent::No, why.into()))
        };
        return messages.into_iter().map(away).collect();
    };
    let batch =
        Batch { link: &link, settings, names, deadline: begun + settings.publish_timeout.0 };
    batch.publish(messages).await
}

struct Batch<'a> {
    link: &'a Link,
    settings: &'a Settings,
    names: &'a Names,
    deadline: Instant,
}

impl Batch<'_> {
    async fn publish(&self, messages: Vec<Message>) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(messages.len());
        // Topics of which a message was not stored.
        let mut broken = BTreeSet::new();
        let mut rest = messages.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut part, mut bytes) = (Vec::new(), 0);
            while part.len() < PART_MAX.min(self.settings.publish_window)
                && bytes < PART_BYTES_MAX
                && let Some(message) = rest.next()
            {
                bytes += message.size();
                part.push(message);
            }
            self.part(part, &mut broken, &mut answers).await;
        }
        answers
    }

    async fn part(
        &self,
        part: Vec<Message>,
        broken: &mut BTreeSet<String>,
        answers: &mut Vec<Answer>,
    ) {
        let mut pipe = Pipeline::with_capacity(part.len() + 1);
        // Those that are refused before anything is sent; the others get their answers in order.
        let mut prepared: Vec<(String, Option<PublishError>)> = Vec::with_capacity(part.len());
        for message in part {
            let refused = self.refusal(&message, broken);
            if refused.is_none() {
                wire::add(&mut pipe, &self.names.stream(&message.topic), &message);
            }
            prepared.push((message.topic, refused));
        }
        let count = pipe.len();
        let outcome = if count == 0 { Ok(Vec::new()) } else { self.send(pipe, count).await };
        let (mut values, failure) = match outcome {
            Ok(values) => (values.into_iter(), None),
            Err(failure) => (Vec::new().into_iter(), Some(failure)),
        };
        for (topic, refused) in prepared {
            let answer = match (refused, &failure) {
                (Some(refused), _) => Err(refused),
                (None, Some((kind, sent, why))) => {
                    Err(error(topic, *kind, *sent, why.clone().into()))
                }
                (None, None) => answer(topic, values.next()),
            };
            if let Err(error) = &answer
                && !error.is_permanent()
            {
                broken.insert(error.topic.clone());
            }
            answers.push(answer);
        }
    }

    fn refusal(&self, message: &Message, broken: &BTreeSet<String>) -> Option<PublishError> {
        let refuse = |kind, why: BoxError| Some(error(message.topic.clone(), kind, Sent::No, why));
        let (size, limit) = (message.size(), self.settings.message_max.0);
        if size > limit {
            let why = format!("it has {size} bytes; {limit} are allowed");
            return refuse(PublishErrorKind::TooLarge, why.into());
        }
        if let Err(bad) = names::check("topic", &message.topic) {
            return refuse(PublishErrorKind::Unroutable, bad.into());
        }
        if broken.contains(&message.topic) {
            let why = "an earlier message of its topic was not stored";
            return refuse(PublishErrorKind::Overloaded, why.into());
        }
        None
    }

    /// Sends commands and waits for their answers. An error is one for all of them.
    async fn send(
        &self,
        mut pipe: Pipeline,
        count: usize,
    ) -> Result<Vec<Value>, (PublishErrorKind, Sent, String)> {
        let permits = u32::try_from(count).unwrap_or(u32::MAX);
        let room = timeout_at(self.deadline, self.link.window.acquire_many(permits)).await;
        let Ok(Ok(_room)) = room else {
            let why = "too many messages wait for their confirmation".to_owned();
            return Err((PublishErrorKind::Overloaded, Sent::No, why));
        };
        let replicas = self.settings.replicas;
        let mut expected = count;
        if replicas > 0 {
            let wait = self.settings.publish_timeout.0.as_millis() / 2;
            pipe.cmd("WAIT").arg(replicas).arg(wait.to_string());
            expected += 1;
        }
        let mut connection = self.link.publishing();
        let sent = connection.send_packed_commands(&pipe, 0, expected);
        let mut values = match timeout_at(self.deadline, sent).await {
            Ok(Ok(values)) => values,
            Ok(Err(error)) => {
                self.link.heed(&error);
                let why = error.to_string();
                return Err((PublishErrorKind::Disconnected, Sent::Maybe, why));
            }
            Err(_) => {
                // Whatever comes after would be sent on a connection that answers nothing.
                self.link.lose("the server confirms nothing");
                let why = "the server did not answer in time".to_owned();
                return Err((PublishErrorKind::Disconnected, Sent::Maybe, why));
            }
        };
        if replicas > 0 {
            let have = values.pop();
            if !matches!(have, Some(Value::Int(have)) if usize::try_from(have).is_ok_and(|have| have >= replicas))
            {
                let why = format!("fewer than {replicas} replicas have it: {have:?}");
                return Err((PublishErrorKind::Overloaded, Sent::Maybe, why));
            }
        }
        Ok(values)
    }
}

fn answer(topic: String, value: Option<Value>) -> Answer {
    match value {
        Some(Value::BulkString(_) | Value::SimpleString(_)) => Ok(Receipt),
        Some(Value::Nil) => {
            let why = "there is no such topic; declare it first";
            Err(error(topic, PublishErrorKind::Unroutable, Sent::No, why.into()))
        }
        Some(Value::ServerError(refusal)) => {
            let (kind, sent) = meaning(refusal.code());
            let why = format!("{} {}", refusal.code(), refusal.details().unwrap_or_default());
            Err(error(topic, kind, sent, why.into()))
        }
        other => {
            let why = format!("the server's answer does not read: {other:?}");
            Err(error(topic, PublishErrorKind::Disconnected, Sent::Maybe, why.into()))
        }
    }
}

pub(crate) fn error(
    topic: String,
    kind: PublishErrorKind,
    sent: Sent,
    source: BoxError,
) -> PublishError {
    PublishError { topic, kind, sent, source: Some(source) }
}
