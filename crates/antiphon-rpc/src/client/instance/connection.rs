//! One HTTP/2 connection.

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use connectrpc::ConnectError;
use connectrpc::client::ClientBody;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body::{Body, Frame, SizeHint};
use hyper::client::conn::http2::{self, Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::super::ClientSettings;
use super::super::exchange::chain;

/// How often it is looked whether the server has said its first word.
const LOOK: Duration = Duration::from_millis(1);

/// The part of the streams that a server allows on a connection above which another one is made.
const CROWDED: f64 = 0.8;

/// How long an address of a host has the field for itself before the next one is tried beside it.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

type Connected = http2::Connection<TokioIo<TcpStream>, CallBody, TokioExecutor>;

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<CallBody>,
    places: Arc<Places>,
}

/// The calls on a connection.
///
/// No more are sent than the server allows at once: what waits inside of hyper when the connection ends
/// cannot be told from what left, and is lost though nobody has seen it.
#[derive(Debug)]
struct Places {
    /// How many the server allows at once.
    streams_max: AtomicUsize,
    /// How many are under way or wait: each holds a [`Lease`].
    calls: AtomicUsize,
    /// A permit for each stream that is free. Closed with the connection.
    streams: Semaphore,
}

impl Places {
    fn new(streams_max: usize) -> Self {
        let streams_max = streams_max.min(Semaphore::MAX_PERMITS);
        Self {
            streams_max: AtomicUsize::new(streams_max),
            calls: AtomicUsize::new(0),
            streams: Semaphore::new(streams_max),
        }
    }

    /// The server allows so many. Where it allows fewer than before, those that are in use are taken
    /// when it is told again.
    fn allow(&self, streams_max: usize) {
        let streams_max = streams_max.min(Semaphore::MAX_PERMITS);
        let before = self.streams_max.load(Relaxed);
        if streams_max > before {
            self.streams_max.store(streams_max, Relaxed);
            self.streams.add_permits(streams_max - before);
        } else if streams_max < before {
            let taken = self.streams.forget_permits(before - streams_max);
            self.streams_max.store(before - taken, Relaxed);
        }
    }
}

impl Connection {
    /// Whether it takes calls: it is not broken, and the server has not asked to leave.
    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// How many calls are under way or wait.
    pub(super) fn calls(&self) -> usize {
        self.places.calls.load(Relaxed)
    }

    /// Whether another connection should be made before this one is full.
    pub(super) fn is_crowded(&self) -> bool {
        self.calls() as f64 >= self.places.streams_max.load(Relaxed) as f64 * CROWDED
    }

    /// A call begins: its place, and what its request is sent with, unless it has to wait for a stream.
    pub(super) fn lease(&self) -> (Lease, Option<SendRequest<CallBody>>) {
        self.places.calls.fetch_add(1, Relaxed);
        let mut lease = Lease { places: Arc::clone(&self.places), has_stream: false };
        let free = self.places.streams.try_acquire().map(|permit| permit.forget());
        lease.has_stream = free.is_ok();
        let sender = lease.has_stream.then(|| self.sender.clone());
        (lease, sender)
    }

    /// What the request of a lease is sent with that has a stream; `None` if it is one of another
    /// connection.
    pub(super) fn sender_of(&self, lease: &Lease) -> Option<SendRequest<CallBody>> {
        Arc::ptr_eq(&self.places, &lease.places).then(|| self.sender.clone())
    }
}

/// The right to make one call over a connection. The call is under way, or waits, until this is dropped.
///
/// It does not hold the sender: a request that is given to a connection in the moment in which that ends
/// may be left lying in hyper's queue, and comes back only when the last sender is gone.
#[derive(Debug)]
pub(in super::super) struct Lease {
    places: Arc<Places>,
    /// Whether it has one of the streams that the server allows.
    has_stream: bool,
}

impl Lease {
    /// Waits for a stream, behind those that came before. Whether there is one: else the connection has
    /// ended.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue.
    pub(super) async fn wait(&mut self) -> bool {
        if let Ok(permit) = self.places.streams.acquire().await {
            permit.forget();
            self.has_stream = true;
        }
        self.has_stream
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.places.calls.fetch_sub(1, Relaxed);
        if self.has_stream {
            self.places.streams.add_permits(1);
        }
    }
}

/// Connects within the time that the settings give, all addresses of the host together, and waits for
/// the server's first word: whoever accepts connections and answers nothing is no instance to call.
///
/// The server is asked whether it lives when it was quiet for `patience` times as long as the settings
/// say.
///
/// The future that is returned besides ends when the connection takes no more calls.
///
/// # Errors
/// Why that did not work, for people.
pub(super) async fn connect(
    address: &str,
    settings: &ClientSettings,
    patience: u32,
) -> Result<(Connection, impl Future<Output = Result<(), hyper::Error>> + use<>), String> {
    let limit = settings.connect_timeout;
    let connecting = async {
        let addresses =
            tokio::net::lookup_host(address).await.map_err(|error| error.to_string())?;
        let stream =
            first(addresses, TcpStream::connect).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let (sender, mut connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(settings.keep_alive_interval.saturating_mul(patience))
            .keep_alive_timeout(settings.keep_alive_timeout)
            .adaptive_window(true)
            // No calls before the server has said how many it allows.
            .initial_max_send_streams(0)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        heard(&mut connection).await?;
        Ok::<_, String>((sender, connection))
    };
    let (sender, mut connection) = match tokio::time::timeout(limit, connecting).await {
        Ok(connected) => connected?,
        Err(_) => return Err(format!("no connection within {limit:?}")),
    };
    let places = Arc::new(Places::new(connection.current_max_send_streams()));
    let known = Arc::clone(&places);
    let ended = poll_fn(move |task| {
        let ended = Pin::new(&mut connection).poll(task);
        known.allow(connection.current_max_send_streams());
        if ended.is_ready() {
            known.streams.close();
        }
        ended
    });
    Ok((Connection { sender, places }, ended))
}

/// Connects to the first address that answers: in the order of the resolver, the next one as soon as
/// one has failed or has been silent for a quarter of a second (Happy Eyeballs, RFC 8305, without its
/// sorting). Where only some of the addresses of a host lead to it, the others do not take the time of
/// all.
///
/// # Errors
/// None of them could be connected to; the last to fail says why.
async fn first<T, F>(
    addresses: impl IntoIterator<Item = SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut addresses = addresses.into_iter().peekable();
    let mut racing = FuturesUnordered::new();
    let mut failure = None;
    loop {
        racing.extend(addresses.next().map(&connect));
        tokio::select! {
            Some(outcome) = racing.next() => match outcome {
                Ok(connected) => return Ok(connected),
                Err(error) => failure = Some(error),
            },
            () = sleep(NEXT_ADDRESS_AFTER), if addresses.peek().is_some() => {}
            else => {
                let nothing = || io::Error::new(io::ErrorKind::NotFound, "the host has no address");
                return Err(failure.unwrap_or_else(nothing));
            }
        }
    }
}

/// Whether a connection ended because the server minds how often it is asked whether it lives.
pub(super) fn was_disturbed(error: &hyper::Error) -> bool {
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|error| {
        error.is_remote()
            && error.is_go_away()
            && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM)
    })
}

/// Waits until the server has said how many calls it allows. That is heard by a task of hyper's own,
/// which tells nobody: so it is looked at.
async fn heard(connection: &mut Connected) -> Result<(), String> {
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            biased;
            ended = &mut *connection => return Err(match ended {
                Ok(()) => "it closed the connection".into(),
                Err(error) => chain(&error),
            }),
            _ = look.tick() => {
                if connection.current_max_send_streams() > 0 {
                    return Ok(());
                }
            }
        }
    }
}

/// What is sent: a whole message, which can be sent again, or a stream, which cannot.
pub(in super::super) enum CallBody {
    /// `None` once it was sent.
    Whole(Option<Bytes>),
    Stream(ClientBody),
}

impl Body for CallBody {
    type Data = Bytes;
    type Error = ConnectError;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ConnectError>>> {
        match self.get_mut() {
            Self::Whole(message) => Poll::Ready(message.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(body) => Pin::new(body).poll_frame(task),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(message) => message.is_none(),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(message) => {
                SizeHint::with_exact(message.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const MILLI: Duration = Duration::from_millis(1);
    const NEVER: Duration = Duration::from_secs(3_600);

    /// Who is connected to and after how long, of addresses that answer, or fail, after so much time.
    async fn race(answers: &[Result<Duration, Duration>]) -> (Result<u16, String>, Duration) {
        let begun = Instant::now();
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let addresses = (0..).take(answers.len()).map(address);
        let connected = first(addresses, |address| async move {
            match answers[usize::from(address.port())] {
                Ok(after) => {
                    sleep(after).await;
                    Ok(address.port())
                }
                Err(after) => {
                    sleep(after).await;
                    Err(io::Error::other(format!("{} is away", address.port())))
                }
            }
        });
        let connected = connected.await.map_err(|error| error.to_string());
        (connected, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_silent_does_not_keep_the_next_one_from_being_tried() {
        let silent = [Ok(NEVER), Ok(10 * MILLI), Ok(MILLI)];
        assert_eq!(race(&silent).await, (Ok(1), 260 * MILLI));
        let slow = [Ok(300 * MILLI), Ok(NEVER), Ok(NEVER)];
        assert_eq!(race(&slow).await, (Ok(0), 300 * MILLI));
        let last = [Ok(NEVER), Err(300 * MILLI), Ok(NEVER), Ok(MILLI)];
        assert_eq!(race(&last).await, (Ok(3), 551 * MILLI), "a failure brings the next one in");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_fails_makes_room_for_the_next_one_at_once() {
        let refused = [Err(MILLI), Err(MILLI), Ok(MILLI)];
        assert_eq!(race(&refused).await, (Ok(2), 3 * MILLI));
        let all = [Err(MILLI), Err(MILLI)];
        assert_eq!(race(&all).await, (Err("1 is away".into()), 2 * MILLI));
        assert!(race(&[]).await.0.unwrap_err().contains("no address"));
    }
}
