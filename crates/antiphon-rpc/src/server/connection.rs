//! One connection, from its first byte to its end.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use antiphon_core::{BoxError, Shutdown};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::answer::Answers;
use super::body::Body;
use super::settings::ServerSettings;
use super::wire::{self, Version, Wire};

/// The smallest buffer that hyper accepts for HTTP/1.1.
const HTTP1_BUFFER_MIN: usize = 8 * 1024;
/// HTTP/1.1 needs room for the head and for pieces of bodies.
const HTTP1_BUFFER: usize = 64 * 1024;

/// How connections are served: made once, shared by all of a worker's connections.
pub(super) struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    settings: ServerSettings,
}

impl Protocols {
    pub(super) fn new(settings: &ServerSettings) -> Self {
        let mut http1 = http1::Builder::new();
        // hyper's timers do nothing at all until a timer is installed.
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(settings.header_timeout)
            .max_header_size(settings.header_bytes_max as usize)
            .max_buf_size(HTTP1_BUFFER.max(HTTP1_BUFFER_MIN));
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(settings.keep_alive_interval)
            .keep_alive_timeout(settings.keep_alive_timeout)
            .max_concurrent_streams(settings.streams_max)
            .max_header_list_size(settings.header_bytes_max)
            .initial_stream_window_size(settings.stream_window_bytes)
            .initial_connection_window_size(settings.connection_window_bytes)
            .max_send_buf_size(settings.send_buffer_bytes);
        Self { http1, http2, settings: settings.clone() }
    }
}

/// Serves a connection until the client or the server ends it.
///
/// # Errors
/// What broke it. Nobody but a log is interested.
pub(super) async fn serve(
    mut stream: TcpStream,
    peer: IpAddr,
    protocols: &Protocols,
    answers: Arc<Answers>,
    shutdown: &Shutdown,
) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    let settings = &protocols.settings;
    let sniffing = timeout(settings.sniff_timeout, wire::sniff(&mut stream));
    let Some(sniffed) = shutdown.unless_draining(sniffing).await else {
        return Ok(());
    };
    let Some((version, sniffed)) = sniffed?? else {
        return Ok(());
    };
    let io = TokioIo::new(Wire::new(stream, sniffed, settings.write_timeout));
    let requests = Arc::new(AtomicU64::new(0));
    let service = {
        let requests = Arc::clone(&requests);
        service_fn(move |request: hyper::Request<Incoming>| {
            requests.fetch_add(1, Ordering::Relaxed);
            // What is done here, is done when the request is read, and what is awaited, when there
            // is time for it.
            let answering = answers.answer(request, peer);
            async move { Ok::<hyper::Response<Body>, Infallible>(answering.await) }
        })
    };
    match version {
        Version::Http1 => {
            let connection = protocols.http1.serve_connection(io, service).with_upgrades();
            drive(std::pin::pin!(connection), settings, &requests, shutdown).await
        }
        Version::Http2 => {
            let connection = protocols.http2.serve_connection(io, service);
            drive(std::pin::pin!(connection), settings, &requests, shutdown).await
        }
    }
}

/// A connection that can be asked to end after what it has begun.
trait Graceful: Future<Output = hyper::Result<()>> {
    fn graceful(self: Pin<&mut Self>);
}

impl<I, S> Graceful for http1::UpgradeableConnection<I, S>
where
    S: hyper::service::HttpService<Incoming, ResBody = Body>,
    S::Error: Into<BoxError>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    fn graceful(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S, E> Graceful for http2::Connection<I, S, E>
where
    S: hyper::service::HttpService<Incoming, ResBody = Body>,
    S::Error: Into<BoxError>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, Body>,
{
    fn graceful(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Polls a connection, and asks it to end when the server drains, when it has grown old, or when
/// nothing happens on it.
async fn drive<C: Graceful>(
    mut connection: Pin<&mut C>,
    settings: &ServerSettings,
    requests: &AtomicU64,
    shutdown: &Shutdown,
) -> Result<(), BoxError> {
    // Connections that began together shall not end together.
    let age_max = settings.connection_age_max.mul_f64(0.9 + 0.2 * fastrand::f64());
    // Whether what is still open on it gets only so much time.
    let ending = async {
        tokio::select! {
            () = shutdown.draining() => true,
            () = sleep(age_max) => true,
            // What is open then is a stream that has nothing to say yet, which is no fault.
            () = quiet(settings.idle_timeout, requests) => false,
        }
    };
    let hurried = tokio::select! {
        biased;
        ended = connection.as_mut() => return Ok(ended?),
        hurried = ending => {
            connection.as_mut().graceful();
            hurried
        }
    };
    let grace = async {
        // A drain has its own, which may be longer.
        shutdown.draining().await;
        shutdown.cut().await;
    };
    tokio::select! {
        biased;
        ended = connection.as_mut() => Ok(ended?),
        () = grace => Ok(()),
        () = sleep(settings.connection_age_grace), if hurried && !shutdown.is_draining() => Ok(()),
    }
}

/// Completes when no request has begun for at least `time`, and less than twice that.
async fn quiet(time: Duration, requests: &AtomicU64) {
    let mut before = requests.load(Ordering::Relaxed);
    loop {
        sleep(time).await;
        let now = requests.load(Ordering::Relaxed);
        if now == before {
            return;
        }
        before = now;
    }
}
