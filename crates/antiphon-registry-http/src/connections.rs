//! The connections to the servers, and what TLS they are made with.
//!
//! The files of TLS are replaced while processes run. Whoever gets no answer reads them again, so that
//! the next question goes out with what is in them by then.

use std::time::Duration;

use antiphon_config::{Mistake, TlsFiles};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::tls::{self, Files};

/// For how long a connection that is not used is kept.
const IDLE: Duration = Duration::from_secs(30);
/// After how long a silence the system asks whether the other end is still there, how long it waits
/// between such questions, and how many of them remain without an answer until the connection is lost.
/// An answer that goes on may be silent for long.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);
/// The least time between two readings of the files.
const READING_INTERVAL_MIN: Duration = Duration::from_secs(1);

type HttpsClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// The connections.
pub(crate) struct Connections {
    connect_timeout: Duration,
    /// What is read again after a failure; nothing where no server is asked over TLS.
    files: Option<Files>,
    current: Mutex<Current>,
}

struct Current {
    client: HttpsClient,
    /// When the files were last read again.
    read: Option<Instant>,
}

impl Connections {
    /// Reads the files. `secure` tells whether any server is asked over TLS.
    pub(crate) fn new(
        files: &TlsFiles<'_>,
        secure: bool,
        connect_timeout: Duration,
    ) -> Result<Self, Mistake> {
        let client = client(tls::settings(files)?, connect_timeout);
        let files = secure.then(|| Files::from(files));
        Ok(Self { connect_timeout, files, current: Mutex::new(Current { client, read: None }) })
    }

    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Error> {
        let client = self.current.lock().client.clone();
        let answer = client.request(request).await;
        if answer.is_err() {
            self.read_again().await;
        }
        answer
    }

    /// Makes the next connections with what is in the files now; with what was in them before where
    /// that makes no sense.
    async fn read_again(&self) {
        let Some(files) = self.files.clone() else { return };
        {
            let mut current = self.current.lock();
            let now = Instant::now();
            if current.read.is_some_and(|read| now < read + READING_INTERVAL_MIN) {
                return;
            }
            current.read = Some(now);
        }
        match tokio::task::spawn_blocking(move || tls::settings(&files.borrowed())).await {
            Ok(Ok(settings)) => {
                self.current.lock().client = client(settings, self.connect_timeout);
            }
            Ok(Err(mistake)) => {
                tracing::warn!(%mistake, "the files of TLS make no sense; what they were holds");
            }
            // The runtime is ending.
            Err(_) => {}
        }
    }
}

fn client(settings: rustls::ClientConfig, connect_timeout: Duration) -> HttpsClient {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(connect_timeout));
    connector.set_nodelay(true);
    connector.set_keepalive(Some(KEEP_ALIVE.0));
    connector.set_keepalive_interval(Some(KEEP_ALIVE.1));
    connector.set_keepalive_retries(Some(KEEP_ALIVE.2));
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(settings)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .build(connector)
}

#[cfg(test)]
mod tests;
