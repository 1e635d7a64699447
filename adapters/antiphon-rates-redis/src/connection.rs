//! The connection, and who keeps it.

use std::sync::Arc;
use std::time::Duration;

use antiphon_config::{Mistake, TlsPems, without_login};
use antiphon_core::retry::Decision;
use antiphon_core::{BoxError, Retry, RetryPolicy};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    PushKind, RedisError, TlsCertificates,
};
use tokio::sync::{Notify, watch};

use crate::error::StartError;
use crate::settings::Settings;

/// The waits between attempts to connect.
const RECONNECT: RetryPolicy =
    RetryPolicy::exponential(Duration::from_millis(50), Duration::from_secs(2));
/// How often the server is asked for a sign of life.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// How long the server may take for an answer. Calls wait less.
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
    let bad_url = |error: RedisError| StartError::Settings(Mistake::new("url", error.to_string()));
    let info = settings.url.as_str().into_connection_info().map_err(bad_url)?;
    // Over this protocol a connection tells when it is closed.
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
    pub(crate) link: Arc<Link>,
}

impl Supervisor {
    pub(crate) async fn run(self) {
        let url = &self.url;
        loop {
            let lost = Arc::new(Notify::new());
            let connection = self.reconnect(&lost).await;
            self.link.set(Some(connection.clone()));
            tracing::info!(url, "the shared rate limits have their Redis server");
            let why = tokio::select! {
                () = lost.notified() => "the connection was closed".into(),
                error = signs_of_life(connection) => error,
            };
            self.link.set(None);
            tracing::warn!(url, why, "the shared rate limits lost their Redis server");
        }
    }

    async fn reconnect(&self, lost: &Arc<Notify>) -> MultiplexedConnection {
        let mut failures = 0;
        loop {
            let (error, next) = match self.connect(lost).await {
                Ok(connection) => return connection,
                Err(failed) => failed,
            };
            failures += 1;
            let wait = match RECONNECT.decide(failures, Retry::Outage, fastrand::f64()) {
                Decision::RetryAfter(wait) => wait,
                // An outage never gives up.
                Decision::GiveUp => RECONNECT.delay_max,
            };
            let url = &self.url;
            tracing::warn!(
                url, %error, next, ?wait, "the shared rate limits cannot reach their Redis server"
            );
            tokio::time::sleep(wait).await;
        }
    }

    /// A connection that answers; or why there is none, and what somebody can do about it.
    async fn connect(
        &self,
        lost: &Arc<Notify>,
    ) -> Result<MultiplexedConnection, (BoxError, &'static str)> {
        let lost = Arc::clone(lost);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(ANSWER_TIMEOUT))
            .set_push_sender(move |push: redis::PushInfo| {
                if push.kind == PushKind::Disconnection {
                    lost.notify_one();
                }
                Ok::<(), redis::aio::SendError>(())
            });
        let connected = async {
            let connected = self.client.get_multiplexed_async_connection_with_config(&config);
            let mut connection = connected.await?;
            ping(&mut connection).await?;
            Ok(connection)
        };
        // The client's own bound does not hold for a server that accepts and then says nothing.
        match tokio::time::timeout(self.connect_timeout, connected).await {
            Ok(connected) => connected.map_err(|error: RedisError| {
                let next = next_step(&error);
                (error.into(), next)
            }),
            Err(_) => Err(("it does not answer in time".into(), "is the address right?")),
        }
    }
}

/// What somebody can do about a server that lets nobody in.
fn next_step(error: &RedisError) -> &'static str {
    match error.code() {
        Some("WRONGPASS" | "NOAUTH" | "NOPERM") => "check user and password",
        _ if error.kind() == ErrorKind::AuthenticationFailed => "check user and password",
        _ if error.is_io_error() => "is it running, and is the address right?",
        _ => "see what the server says",
    }
}

async fn ping(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
    redis::cmd("PING").query_async::<()>(connection).await
}

/// Asks for signs of life until there is none.
async fn signs_of_life(mut connection: MultiplexedConnection) -> BoxError {
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        if let Err(error) = ping(&mut connection).await {
            return error.into();
        }
    }
}
