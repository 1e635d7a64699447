//! One instance and the connection to it.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::BoxError;
use connectrpc::client::ClientBody;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::ClientSettings;

/// The shortest and the longest time between two attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// One instance of a service, by its address.
#[derive(Debug)]
pub(super) struct Instance {
    address: String,
    settings: ClientSettings,
    /// Where connections live; calls come from any runtime.
    runtime: Handle,
    open: Mutex<Option<SendRequest<ClientBody>>>,
    /// Held while connecting, so that many calls make one connection.
    connecting: tokio::sync::Mutex<Failures>,
}

#[derive(Debug, Default)]
struct Failures {
    in_a_row: u32,
    last: Option<(Instant, Arc<ConnectFailure>)>,
}

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect: {0}")]
pub(super) struct ConnectFailure(String);

impl Instance {
    pub(super) fn new(address: String, settings: ClientSettings, runtime: Handle) -> Self {
        let connecting = tokio::sync::Mutex::default();
        Self { address, settings, runtime, open: Mutex::new(None), connecting }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// The open connection, or a new one.
    ///
    /// # Errors
    /// Connecting failed, now or a moment ago.
    pub(super) async fn connection(&self) -> Result<SendRequest<ClientBody>, Arc<ConnectFailure>> {
        if let Some(open) = self.open() {
            return Ok(open);
        }
        let mut failures = self.connecting.lock().await;
        if let Some(open) = self.open() {
            return Ok(open);
        }
        if let Some((at, failure)) = &failures.last {
            let wait = BACKOFF.0.saturating_mul(1 << failures.in_a_row.min(6)).min(BACKOFF.1);
            if at.elapsed() < wait {
                return Err(Arc::clone(failure));
            }
        }
        match self.connect().await {
            Ok(connection) => {
                *failures = Failures::default();
                *self.open.lock() = Some(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                let failure = Arc::new(ConnectFailure(error.to_string()));
                failures.in_a_row += 1;
                failures.last = Some((Instant::now(), Arc::clone(&failure)));
                Err(failure)
            }
        }
    }

    fn open(&self) -> Option<SendRequest<ClientBody>> {
        let mut open = self.open.lock();
        if open.as_ref().is_some_and(SendRequest::is_closed) {
            *open = None;
        }
        open.clone()
    }

    /// Connects on the channel's own runtime, where the connection then lives.
    async fn connect(&self) -> Result<SendRequest<ClientBody>, BoxError> {
        let (address, settings) = (self.address.clone(), self.settings.clone());
        let limit = settings.connect_timeout;
        let attempt = self.runtime.spawn(async move {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(settings.keep_alive_interval)
                .keep_alive_timeout(settings.keep_alive_timeout)
                .adaptive_window(true)
                .handshake(TokioIo::new(stream))
                .await?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(server.address = address, %error, "a connection ended");
                }
            });
            Ok::<_, BoxError>(sender)
        });
        match tokio::time::timeout(limit, attempt).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(join)) => Err(join.into()),
            Err(_) => Err(format!("no connection within {limit:?}").into()),
        }
    }
}
