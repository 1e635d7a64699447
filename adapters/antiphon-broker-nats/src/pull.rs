//! Asking a consumer for messages: pull requests, what is still to come of them, and whether the
//! consumer is alive.
//!
//! Pulls are written by hand and not with the client's streams, since those fetch as many as they
//! like, while a member may hold no more than its credits.

use std::time::Duration;

use async_nats::{Client, Message, Subject};
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;

/// How long a pull waits at the server.
const EXPIRES: Duration = Duration::from_secs(30);
/// How often the server shows during a pull that the consumer is alive.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(3);
/// For how long a consumer may be silent while a pull waits there.
const SILENCE_MAX: Duration = Duration::from_secs(7);

/// Sends something without waiting, or from a task of its own when the connection is busy.
pub(crate) fn post(client: &Client, subject: &Subject, reply: Option<&Subject>, payload: Bytes) {
    // Without the budget of the caller's task, which would make a long batch wait for no reason.
    let sent = match reply {
        None => tokio::task::unconstrained(client.publish(subject.clone(), payload.clone()))
            .now_or_never(),
        Some(reply) => tokio::task::unconstrained(client.publish_with_reply(
            subject.clone(),
            reply.clone(),
            payload.clone(),
        ))
        .now_or_never(),
    };
    if sent.is_some() {
        // A connection that is gone is noticed elsewhere; what is lost here comes again.
        return;
    }
    let (client, subject, reply) = (client.clone(), subject.clone(), reply.cloned());
    spawn(async move {
        // Lost with its connection, as above.
        let _ = match reply {
            None => client.publish(subject, payload).await,
            Some(reply) => client.publish_with_reply(subject, reply, payload).await,
        };
    });
}

/// Runs something beside, if there is a runtime: sources are also dropped when there is none any
/// more, and then the server finds out by itself.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(task);
    }
}

/// What a status of the server says of a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It is alive.
    Alive,
    /// A pull has ended with this many messages missing; `None` when the server does not say.
    Ended(Option<usize>),
    /// The consumer is gone.
    Gone(String),
}

/// Reads a message that is no delivery.
pub(crate) fn status(message: &Message) -> Option<Status> {
    let code = message.status?.as_u16();
    let text = message.description.clone().unwrap_or_default();
    let pending = message.headers.as_ref().and_then(|headers| {
        headers.get("Nats-Pending-Messages").and_then(|value| value.as_str().parse().ok())
    });
    let lower = text.to_ascii_lowercase();
    Some(match code {
        100 => Status::Alive,
        409 if lower.contains("deleted") || lower.contains("push based") => Status::Gone(text),
        503 => Status::Gone("its consumer is gone".to_owned()),
        404 | 408 | 409 => Status::Ended(pending),
        _ => Status::Alive,
    })
}

/// A consumer, and what was asked of it.
#[derive(Debug)]
pub(crate) struct Pull {
    request: Subject,
    reply: Subject,
    /// How many messages are still to come.
    outstanding: usize,
    /// When the server last said anything about it.
    heard: Instant,
    /// How often it was silent for too long, in a row.
    silences: u32,
}

impl Pull {
    pub(crate) fn new(stream: &str, consumer: &str, reply: String) -> Self {
        Self {
            request: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}").into(),
            reply: reply.into(),
            outstanding: 0,
            heard: Instant::now(),
            silences: 0,
        }
    }

    /// Whether what was sent to this subject is about its requests.
    pub(crate) fn answers_to(&self, subject: &Subject) -> bool {
        self.reply == *subject
    }

    /// How many messages are still to come.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Asks for more.
    pub(crate) fn ask(&mut self, client: &Client, count: usize, expires: Option<Duration>) {
        let expires = expires.unwrap_or(EXPIRES);
        let heartbeat = HEARTBEAT.min(expires / 3);
        let request = format!(
            r#"{{"batch":{count},"expires":{},"idle_heartbeat":{}}}"#,
            expires.as_nanos(),
            heartbeat.as_nanos()
        );
        if self.outstanding == 0 {
            self.heard = Instant::now();
        }
        self.outstanding += count;
        post(client, &self.request, Some(&self.reply), request.into());
    }

    /// A message came.
    pub(crate) fn delivered(&mut self) {
        self.outstanding = self.outstanding.saturating_sub(1);
        self.alive();
    }

    /// The server said something of it.
    pub(crate) fn alive(&mut self) {
        self.heard = Instant::now();
        self.silences = 0;
    }

    /// A pull has ended.
    pub(crate) fn ended(&mut self, missing: Option<usize>) {
        self.alive();
        self.outstanding = missing.map_or(0, |missing| self.outstanding.saturating_sub(missing));
    }

    /// Whether it has been silent for too long. Then what was asked is forgotten, to be asked again;
    /// the number says how often in a row.
    pub(crate) fn silent(&mut self, now: Instant) -> Option<u32> {
        if self.outstanding == 0 || now - self.heard < SILENCE_MAX {
            return None;
        }
        self.outstanding = 0;
        self.silences += 1;
        Some(self.silences)
    }
}

#[cfg(test)]
mod tests {
    use async_nats::{HeaderMap, StatusCode};

    use super::*;

    fn said(code: u16, text: &str, pending: Option<&str>) -> Option<Status> {
        let mut headers = HeaderMap::new();
        if let Some(pending) = pending {
            headers.insert("Nats-Pending-Messages", pending);
        }
        status(&Message {
            subject: "_INBOX.x.0".into(),
            reply: None,
            payload: Bytes::new(),
            headers: Some(headers),
            status: StatusCode::from_u16(code).ok(),
            description: Some(text.to_owned()),
            length: 0,
        })
    }

    #[test]
    fn statuses_say_how_a_pull_is() {
        assert_eq!(said(100, "Idle Heartbeat", None), Some(Status::Alive));
        assert_eq!(said(408, "Request Timeout", Some("7")), Some(Status::Ended(Some(7))));
        assert_eq!(said(409, "Leadership Change", None), Some(Status::Ended(None)));
        assert!(matches!(said(409, "Consumer Deleted", None), Some(Status::Gone(_))));
        assert!(matches!(said(503, "", None), Some(Status::Gone(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_consumer_is_asked_again() {
        let mut pull = Pull::new("s", "c", "_INBOX.x.0".into());
        assert_eq!(pull.silent(Instant::now() + 2 * SILENCE_MAX), None, "nothing was asked");
        pull.outstanding = 5;
        assert_eq!(pull.silent(Instant::now() + SILENCE_MAX / 2), None);
        assert_eq!(pull.silent(Instant::now() + SILENCE_MAX), Some(1));
        assert_eq!(pull.outstanding(), 0);
        pull.outstanding = 5;
        assert_eq!(pull.silent(Instant::now() + SILENCE_MAX), Some(2));
        pull.outstanding = 5;
        pull.delivered();
        assert_eq!(pull.outstanding(), 4);
        assert_eq!(pull.silent(Instant::now() + SILENCE_MAX), Some(1));
        pull.outstanding = 9;
        pull.ended(Some(4));
        assert_eq!(pull.outstanding(), 5);
    }
}
