//! One WebSocket from its upgrade to its close.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Code, Context, Status};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt, stream};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error as SocketError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use super::super::Shared;
use super::super::problem;
use super::super::request::Said;
use super::super::routes::Route;
use crate::server::Call;
use crate::service::{Codec, Encoded, MethodKind, Streaming};

/// How long the client may take to switch protocols, and to answer a close frame.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The longest reason that fits in a close frame.
const REASON_MAX: usize = 123;

type Socket = WebSocketStream<TokioIo<Upgraded>>;
type Requests = mpsc::Sender<Result<Bytes, Status>>;

/// What is known of the client's messages before it sends any.
pub(super) enum Opening {
    /// Messages take in what the path says, and the first one what the query says.
    Waits { path: String, query: String },
    /// The path and the query say all.
    Complete(Bytes),
}

/// A WebSocket and the call that it carries.
pub(super) struct Session {
    shared: Arc<Shared>,
    route: Arc<Route>,
    call: Call,
    codec: Codec,
    opening: Opening,
}

/// How a session ends.
enum End {
    /// The stream came to its end.
    Done,
    /// It failed.
    Failed(Status),
    /// The client broke the rules of WebSocket.
    Broken(CloseCode, &'static str),
    /// The client closed or is gone.
    Gone,
}

impl Session {
    pub(super) fn new(
        shared: Arc<Shared>,
        route: Arc<Route>,
        call: Call,
        codec: Codec,
        opening: Opening,
    ) -> Self {
        Self { shared, route, call, codec, opening }
    }

    /// Carries the call until it ends or the client goes.
    pub(super) async fn run(self, upgrade: OnUpgrade) {
        let Ok(Ok(upgraded)) = timeout(HANDSHAKE, upgrade).await else {
            return;
        };
        let settings = self.shared.calls.settings();
        let config = WebSocketConfig::default()
            .read_buffer_size(8 * 1024)
            .write_buffer_size(8 * 1024)
            .max_message_size(Some(settings.message_bytes_max))
            .max_frame_size(Some(settings.message_bytes_max));
        let write_timeout = settings.write_timeout;
        let io = TokioIo::new(upgraded);
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
        let context = self.call.context().clone();
        // One message waits while the handler works on the one before.
        let (sender, mut receiver) = mpsc::channel(1);
        let receiver = Streaming::new(stream::poll_fn(move |task| receiver.poll_recv(task)));
        let method = Arc::clone(&self.route.method);
        let codec = self.codec;
        let opened = self
            .call
            .open(async move { method.service.stream(method.index, receiver, codec).await });
        let mut pump = Pump {
            shared: self.shared,
            route: self.route,
            codec,
            socket,
            requests: None,
            path: String::new(),
            query: None,
            heard: Instant::now(),
            write_timeout,
        };
        match self.opening {
            Opening::Waits { path, query } => {
                pump.requests = Some(sender);
                pump.path = path;
                pump.query = Some(query);
            }
            Opening::Complete(message) => {
                // The channel is empty, so there is room.
                let _ = sender.try_send(Ok(message));
            }
        }
        let end = pump.carry(stream::once(opened).try_flatten()).await;
        pump.close(end, &context).await;
    }
}

/// Carries frames between the socket and the call.
struct Pump {
    shared: Arc<Shared>,
    route: Arc<Route>,
    codec: Codec,
    socket: Socket,
    /// Until the client's messages come to their end.
    requests: Option<Requests>,
    /// What the path says is a part of every message.
    path: String,
    /// What the query says is a part of the first message; nothing after it.
    query: Option<String>,
    /// When the client was last heard.
    heard: Instant,
    write_timeout: Duration,
}

impl Pump {
    async fn carry(
        &mut self,
        answers: impl futures_util::Stream<Item = Result<Encoded, Status>>,
    ) -> End {
        let mut answers = pin!(answers);
        let settings = self.shared.settings.clone();
        let too_old = pin!(tokio::time::sleep(settings.socket_age_max));
        let mut too_old = too_old;
        let mut pings =
            interval_at(Instant::now() + settings.ping_interval, settings.ping_interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let end = tokio::select! {
                answer = answers.next() => match answer {
                    None => Some(End::Done),
                    Some(Err(status)) => Some(End::Failed(status)),
                    Some(Ok(encoded)) => self.answer(&encoded).await,
                },
                frame = receive(&mut self.socket, self.requests.as_ref()) => {
                    self.heard = Instant::now();
                    self.frame(frame)
                }
                _ = pings.tick() => self.ping(settings.socket_idle_timeout).await,
                () = &mut too_old => Some(End::Failed(
                    Status::unavailable("the socket is as old as it may get; connect again")
                )),
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    async fn answer(&mut self, encoded: &Encoded) -> Option<End> {
        let message = encoded.message();
        let frame = match self.codec {
            Codec::Proto => Message::Binary(message),
            Codec::Json => {
                let json = self.route.answer.select(&self.shared.schema, message);
                match json.try_into() {
                    Ok(text) => Message::Text(text),
                    Err(error) => return Some(End::Failed(Status::internal(error))),
                }
            }
        };
        self.send(frame).await
    }

    async fn send(&mut self, frame: Message) -> Option<End> {
        match timeout(self.write_timeout, self.socket.send(frame)).await {
            Ok(Ok(())) => None,
            Ok(Err(_)) | Err(_) => Some(End::Gone),
        }
    }

    async fn ping(&mut self, idle_max: Duration) -> Option<End> {
        // While the handler has no room for another message, nobody listens to the client.
        let deaf = self.requests.as_ref().is_some_and(|requests| requests.capacity() == 0);
        if !deaf && self.heard.elapsed() > idle_max {
            let message = format!("the client said nothing for {idle_max:?}, not even pong");
            return Some(End::Failed(Status::new(Code::Cancelled, message)));
        }
        self.send(Message::Ping(Bytes::new())).await
    }

    fn frame(&mut self, frame: Option<Result<Message, SocketError>>) -> Option<End> {
        let frame = match frame {
            None => return Some(End::Gone),
            Some(Err(error)) => return Some(broken(&error)),
            Some(Ok(frame)) => frame,
        };
        match (frame, self.codec) {
            (Message::Close(_), _) => Some(End::Gone),
            (Message::Ping(_) | Message::Pong(_) | Message::Frame(_), _) => None,
            (Message::Text(text), _) if text.is_empty() => self.no_more_messages(),
            (Message::Text(text), Codec::Json) => self.message(text.into()),
            (Message::Binary(bytes), Codec::Proto) => self.message(bytes),
            (Message::Text(_), Codec::Proto) => {
                Some(End::Broken(CloseCode::Unsupported, "messages are binary frames"))
            }
            (Message::Binary(_), Codec::Json) => Some(End::Broken(
                CloseCode::Unsupported,
                "messages are text frames; ask for the subprotocol antiphon.proto",
            )),
        }
    }

    /// Hands a message of the client to the handler.
    fn message(&mut self, frame: Bytes) -> Option<End> {
        let Some(requests) = &self.requests else {
            let message = "a message came after the end of the client's messages";
            return Some(End::Failed(Status::invalid_argument(message)));
        };
        let query = self.query.take().unwrap_or_default();
        let message = match self.codec {
            Codec::Proto => Ok(frame),
            Codec::Json => {
                let said = Said { path: &self.path, query: &query };
                self.route.request.message(&self.shared.schema, said, "", frame)
            }
        };
        let message = match message {
            Ok(message) => message,
            Err(status) => return Some(End::Failed(status)),
        };
        // There is room, or the handler wants no more: then the message is not needed.
        let _ = requests.try_send(Ok(message));
        if self.route.method.info.kind == MethodKind::ServerStream {
            self.requests = None;
        }
        None
    }

    /// The client has said all. What the path and the query say is a message of its own when there
    /// was no other one to put it into.
    fn no_more_messages(&mut self) -> Option<End> {
        let query_says = self.query.as_ref().is_some_and(|query| !query.is_empty());
        if self.query.is_some() && (query_says || self.route.request.takes_from_path()) {
            let end = self.message(Bytes::new());
            if end.is_some() {
                return end;
            }
        }
        self.requests = None;
        None
    }

    /// Tells the client how it ended and lets it answer the close frame.
    async fn close(mut self, end: End, context: &Context) {
        let (code, reason) = match end {
            End::Gone => (None, String::new()),
            End::Done => (Some(CloseCode::Normal), String::new()),
            End::Broken(code, reason) => (Some(code), reason.to_owned()),
            End::Failed(status) => {
                let problem = problem::json(&status, Some(context));
                let frame = Message::text(format!("{{\"error\":{problem}}}"));
                if self.send(frame).await.is_some() {
                    return;
                }
                let code = 4000 + u16::from(status.code().number());
                (Some(CloseCode::from(code)), status.to_string())
            }
        };
        let close = code.map(|code| CloseFrame { code, reason: cut(&reason).into() });
        let closing = async {
            // Answers the client's close frame where there was one.
            if self.socket.close(close).await.is_ok() {
                while let Some(Ok(_)) = self.socket.next().await {}
            }
        };
        let _ = timeout(HANDSHAKE, closing).await;
    }
}

/// The next frame, once there is room for another message of the client.
async fn receive(
    socket: &mut Socket,
    requests: Option<&Requests>,
) -> Option<Result<Message, SocketError>> {
    if let Some(requests) = requests {
        // The channel closes when the handler wants no more messages; frames are still read, so
        // that a close frame is seen.
        let _ = requests.reserve().await;
    }
    socket.next().await
}

fn broken(error: &SocketError) -> End {
    match error {
        SocketError::Capacity(_) => End::Broken(CloseCode::Size, "the message is too long"),
        SocketError::Utf8(_) => End::Broken(CloseCode::Invalid, "a text frame is not UTF-8"),
        SocketError::Protocol(_) => End::Broken(CloseCode::Protocol, "the frame is broken"),
        _ => End::Gone,
    }
}

/// As much of a text as fits in a close frame.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(REASON_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = "é".repeat(100);
        assert_eq!(cut(&long).len(), 122);
    }
}
