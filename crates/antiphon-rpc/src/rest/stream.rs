//! The answers of a server stream over HTTP: lines of JSON, Server-Sent Events, or raw bytes.
//!
//! * NDJSON: one message per line. A failure is a last line `{"error": problem}`, and then the answer
//!   breaks off, so that nobody takes half a stream for a whole one.
//! * Server-Sent Events: one event per message with a running number as its id. The last event is
//!   `end` (with `{}`) or `error` (with the problem), after which a browser must close its
//!   `EventSource`, or it connects again. A comment goes out when there is nothing to say for a while,
//!   so that proxies keep the connection.
//! * Raw: the data of `google.api.HttpBody` messages, one after the other.
//!
//! The stream is polled only when the connection can take more, and is dropped with the connection,
//! which cancels the handler.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use antiphon_core::{BoxError, Context, Status};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::Stream;
use http_body::Frame;
use tokio::time::{Instant, Sleep};

use super::problem;
use super::routes::Route;
use super::schema::Schema;
use crate::server::CallStream;
use crate::service::Encoded;

/// How long the line that tells of a failure has to reach the socket before the answer breaks off:
/// a reset overtakes what is still in the send buffer.
const BEFORE_BREAKING_OFF: Duration = Duration::from_millis(50);

/// How the messages of a stream are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// A line per message.
    Lines,
    /// An event per message.
    Events,
    /// The bytes of a `google.api.HttpBody`.
    Raw,
}

/// The body of the answer to a server stream.
pub(super) struct StreamBody {
    answers: CallStream<Encoded>,
    /// What was taken from `answers` before the head of the answer was sent.
    first: Option<Encoded>,
    format: Format,
    schema: Arc<Schema>,
    route: Arc<Route>,
    context: Context,
    events: u64,
    keep_alive: Duration,
    timer: Pin<Box<Sleep>>,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Breaks off when the timer ends.
    BreakingOff,
    Over,
}

impl StreamBody {
    pub(super) fn new(
        answers: CallStream<Encoded>,
        first: Option<Encoded>,
        format: Format,
        schema: Arc<Schema>,
        route: Arc<Route>,
        keep_alive: Duration,
    ) -> Self {
        let context = answers.call().context().clone();
        let timer = Box::pin(tokio::time::sleep(keep_alive));
        let (events, state) = (0, State::Open);
        Self { answers, first, format, schema, route, context, events, keep_alive, timer, state }
    }

    fn message(&mut self, encoded: &Encoded) -> Result<Bytes, Status> {
        let json = encoded.message();
        if self.format == Format::Raw {
            return self.route.answer.raw(&self.schema, json).map(|raw| raw.data);
        }
        let json = self.route.answer.select(&self.schema, json);
        self.events += 1;
        let mut text = BytesMut::with_capacity(json.len() + 32);
        match self.format {
            Format::Events => {
                text.put_slice(b"id: ");
                text.put_slice(self.events.to_string().as_bytes());
                text.put_slice(b"\ndata: ");
                text.put_slice(&json);
                text.put_slice(b"\n\n");
            }
            Format::Lines | Format::Raw => {
                text.put_slice(&json);
                text.put_u8(b'\n');
            }
        }
        Ok(text.freeze())
    }

    fn failure(&mut self, status: &Status) -> Bytes {
        let problem = problem::json(status, Some(&self.context));
        self.state = State::Over;
        if self.format == Format::Events {
            return Bytes::from(format!("event: error\ndata: {problem}\n\n"));
        }
        self.state = State::BreakingOff;
        self.timer.as_mut().reset(Instant::now() + BEFORE_BREAKING_OFF);
        match self.format {
            Format::Raw => Bytes::new(),
            _ => Bytes::from(format!("{{\"error\":{problem}}}\n")),
        }
    }

    fn end(&mut self) -> Option<Bytes> {
        self.state = State::Over;
        (self.format == Format::Events).then(|| Bytes::from_static(b"event: end\ndata: {}\n\n"))
    }

    fn poll_answer(&mut self, task: &mut TaskContext<'_>) -> Poll<Option<Result<Encoded, Status>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => Pin::new(&mut self.answers).poll_next(task),
        }
    }
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        match this.state {
            State::Over => return Poll::Ready(None),
            State::BreakingOff => {
                return this.timer.as_mut().poll(task).map(|()| {
                    this.state = State::Over;
                    Some(Err("the stream failed".into()))
                });
            }
            State::Open => {}
        }
        let data = match this.poll_answer(task) {
            Poll::Ready(Some(Ok(encoded))) => {
                let data = this.message(&encoded).unwrap_or_else(|status| this.failure(&status));
                if this.state == State::Open && this.format == Format::Events {
                    this.timer.as_mut().reset(Instant::now() + this.keep_alive);
                }
                data
            }
            Poll::Ready(Some(Err(status))) => this.failure(&status),
            Poll::Ready(None) => match this.end() {
                Some(data) => data,
                None => return Poll::Ready(None),
            },
            Poll::Pending if this.format != Format::Events => return Poll::Pending,
            Poll::Pending => {
                std::task::ready!(this.timer.as_mut().poll(task));
                this.timer.as_mut().reset(Instant::now() + this.keep_alive);
                // Asks for the timer's next wake-up, too.
                let _ = this.timer.as_mut().poll(task);
                Bytes::from_static(b": keep-alive\n\n")
            }
        };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}
