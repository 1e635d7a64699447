//! The connection, and who keeps it.
//!
//! There is one at a time. Reads, writes and the other processes' invalidations go over the same one,
//! so a connection that answers is one that also brings invalidations. Before a new one is used, every
//! cache forgets what it has in memory, since invalidations may have passed it by; and as long as there
//! is none, they know that they hear of nothing.

use std::sync::Arc;
use std::time::Duration;

use antiphon_config::{Mistake, TlsPems, without_login};
use antiphon_core::retry::Decision;
use antiphon_core::{BoxError, Retry, RetryPolicy};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, IntoConnectionInfo, ProtocolVersion, PushKind,
    TlsCertificates,
};
use tokio::sync::{Notify, watch};

use crate::error::StartError;
use crate::listeners::Listeners;
use crate::settings::Settings;

/// The waits between attempts to connect.
const RECONNECT: RetryPolicy =
    RetryPolicy::exponential(Duration::from_millis(50), Duration::from_secs(2));
/// How often the server is asked for a sign of life.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// How long the server may take for an answer. The caches wait less.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The connection in use, if there is one.
pub(crate) struct Link(watch::Sender<Option<MultiplexedConnection>>);

impl Default for Link {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Link {
    /// # Errors
    /// There is none at the moment.
    pub(crate) fn get(&self) -> Result<MultiplexedConnection, BoxError> {
        let connection = self.0.borrow().clone();
        connection.ok_or_else(|| "there is no connection to the Redis server".into())
    }

    /// Waits until there is one, or none.
    pub(crate) async fn until(&self, is_there: bool) {
        let mut changes = self.0.subscribe();
        // The sender is in `self`: it does not end before this does.
        let _ = changes.wait_for(|connection| connection.is_some() == is_there).await;
    }

    fn set(&self, connection: Option<MultiplexedConnection>) {
        self.0.send_replace(connection);
    }
}

/// A client for these settings.
pub(crate) fn client(settings: &Settings) -> Result<Client, StartError> {
    settings.check().map_err(StartError::Settings)?;
    let bad_url =
        |error: redis::RedisError| StartError::Settings(Mistake::new("url", error.to_string()));
    let info = settings.url.as_str().into_connection_info().map_err(bad_url)?;
    let mut redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    if let Some(password) = settings.password.as_ref().filter(|_| redis.password().is_none()) {
        redis = redis.set_password(password.expose());
        if let Some(user) = &settings.user {
            redis = redis.set_username(user);
        }
    }
    let info = info.set_redis_settings(redis);
    if !settings.is_tls() {
        return Client::open(info).map_err(bad_url);
    }
    // Whoever was first has chosen; all of ours choose the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let TlsPems { ca, identity } = settings.tls().read().map_err(StartError::Settings)?;
    let client_tls =
        identity.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
    let certificates = TlsCertificates { client_tls, root_cert: ca };
    let url = without_login(&settings.url);
    Client::build_with_tls(info, certificates)
        .map_err(|error| StartError::Tls { url, source: error.into() })
}

/// Keeps a connection until it is dropped.
pub(crate) struct Supervisor {
    pub(crate) client: Client,
    pub(crate) url: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) channel: String,
    pub(crate) link: Arc<Link>,
    pub(crate) listeners: Arc<Listeners>,
}

impl Supervisor {
    pub(crate) async fn run(self) {
        let url = &self.url;
        loop {
            let (connection, lost) = self.reconnect().await;
            self.listeners.hear();
            self.link.set(Some(connection.clone()));
            tracing::info!(url, "the cache has its Redis server");
            let why = tokio::select! {
                () = lost.notified() => "the connection was closed".into(),
                error = signs_of_life(connection) => error,
            };
            self.listeners.deaf();
            self.link.set(None);
            tracing::warn!(url, why, "the cache lost its Redis server, and goes on without");
        }
    }

    async fn reconnect(&self) -> (MultiplexedConnection, Arc<Notify>) {
        let mut failures = 0;
        loop {
            let error = match self.connect().await {
                Ok(connected) => return connected,
                Err(error) => error,
            };
            failures += 1;
            let wait = match RECONNECT.decide(failures, Retry::Outage, fastrand::f64()) {
                Decision::RetryAfter(wait) => wait,
                // An outage never gives up.
                Decision::GiveUp => RECONNECT.delay_max,
            };
            let url = &self.url;
            tracing::warn!(url, %error, ?wait, "the cache cannot reach its Redis server");
            tokio::time::sleep(wait).await;
        }
    }

    /// A connection that hears of invalidations, and what is rung when it is closed: its own, since a
    /// try that failed rings as well.
    async fn connect(&self) -> Result<(MultiplexedConnection, Arc<Notify>), BoxError> {
        let lost = Arc::new(Notify::new());
        let (listeners, bell) = (Arc::clone(&self.listeners), Arc::clone(&lost));
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(ANSWER_TIMEOUT))
            .set_push_sender(move |push: redis::PushInfo| {
                if push.kind == PushKind::Disconnection {
                    bell.notify_one();
                }
                listeners.heed(push);
                Ok::<(), redis::aio::SendError>(())
            });
        let connected = self.client.get_multiplexed_async_connection_with_config(&config);
        // The client's own bound does not hold for a server that accepts and then says nothing.
        let connected = tokio::time::timeout(self.connect_timeout, connected).await;
        let mut connection = connected.map_err(|_| "it does not answer in time")??;
        connection.subscribe(&self.channel).await?;
        Ok((connection, lost))
    }
}

/// Asks for signs of life until there is none.
async fn signs_of_life(mut connection: MultiplexedConnection) -> BoxError {
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        if let Err(error) = redis::cmd("PING").query_async::<()>(&mut connection).await {
            return error.into();
        }
    }
}
