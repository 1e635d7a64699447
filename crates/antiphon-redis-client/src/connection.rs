//! A connection, and who keeps it.
//!
//! There is one at a time. What is asked goes over the same one as what the server pushes and as signs
//! of life, so a connection that answers is one that also brings what is pushed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::retry::Decision;
use antiphon_core::{BoxError, Retry, RetryPolicy};
use redis::aio::{MultiplexedConnection, SendError};
use redis::{AsyncConnectionConfig, Client, ErrorKind, PushInfo, PushKind, RedisError};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

/// The waits between attempts to connect.
const RECONNECT: RetryPolicy =
    RetryPolicy::exponential(Duration::from_millis(50), Duration::from_secs(2));
/// How often the server is asked for a sign of life.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// How long the server may take for an answer. Who asks waits less.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Whose connection it is, and what it does when that changes.
pub trait Owner: Send + Sync + 'static {
    /// How logs call it, in the singular: `cache`.
    const NAME: &'static str;

    /// Makes a new connection ready; it is not used when that fails.
    fn prepare(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> impl Future<Output = Result<(), RedisError>> + Send {
        let _ = connection;
        async { Ok(()) }
    }

    /// Called before a new connection is used.
    fn connected(&self) {}

    /// Called when a connection is not used any more.
    fn disconnected(&self) {}

    /// Takes what the server pushes.
    fn pushed(&self, push: PushInfo) {
        let _ = push;
    }
}

/// A connection that is made again when it is lost, until this is dropped.
pub struct Connection {
    current: watch::Sender<Option<MultiplexedConnection>>,
    supervisor: AbortHandle,
}

impl Connection {
    /// Begins to connect. The client must speak RESP3: over it a connection tells when it is closed.
    /// The server, called `url` in logs, may be away.
    ///
    /// # Panics
    /// Outside a Tokio runtime. The connection lives on the one that this is called on.
    #[must_use]
    pub fn keep<O: Owner>(
        client: Client,
        url: String,
        connect_timeout: Duration,
        owner: Arc<O>,
    ) -> Self {
        let current = watch::Sender::new(None);
        let supervisor = Supervisor { client, url, connect_timeout, owner };
        let supervisor = tokio::spawn(supervisor.run(current.clone())).abort_handle();
        Self { current, supervisor }
    }

    /// The connection in use.
    ///
    /// # Errors
    /// There is none at the moment.
    pub fn get(&self) -> Result<MultiplexedConnection, BoxError> {
        let connection = self.current.borrow().clone();
        connection.ok_or_else(|| "there is no connection to the Redis server".into())
    }

    /// Waits until there is one, or none.
    ///
    /// # Cancel safety
    /// Safe: nothing is done.
    pub async fn until(&self, is_there: bool) {
        let mut changes = self.current.subscribe();
        // The sender is in `self`: it does not end before this does.
        let _ = changes.wait_for(|connection| connection.is_some() == is_there).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connected = self.current.borrow().is_some();
        f.debug_struct("Connection").field("connected", &connected).finish_non_exhaustive()
    }
}

struct Supervisor<O> {
    client: Client,
    url: String,
    connect_timeout: Duration,
    owner: Arc<O>,
}

impl<O: Owner> Supervisor<O> {
    async fn run(self, current: watch::Sender<Option<MultiplexedConnection>>) {
        let (owner, url) = (O::NAME, &self.url);
        loop {
            let (connection, closed) = self.reconnect().await;
            self.owner.connected();
            current.send_replace(Some(connection.clone()));
            tracing::info!(owner, url, "the Redis server is there");
            let why = tokio::select! {
                () = closed.notified() => "the connection was closed".into(),
                error = signs_of_life(connection) => error,
            };
            self.owner.disconnected();
            current.send_replace(None);
            tracing::warn!(owner, url, why, "the Redis server is lost; it goes on without");
        }
    }

    async fn reconnect(&self) -> (MultiplexedConnection, Arc<Notify>) {
        let mut failures = 0;
        loop {
            let (error, next) = match self.connect().await {
                Ok(connected) => return connected,
                Err(failed) => failed,
            };
            failures += 1;
            let wait = match RECONNECT.decide(failures, Retry::Outage, fastrand::f64()) {
                Decision::RetryAfter(wait) => wait,
                // An outage never gives up.
                Decision::GiveUp => RECONNECT.delay_max,
            };
            let (owner, url) = (O::NAME, &self.url);
            tracing::warn!(owner, url, %error, next, ?wait, "the Redis server cannot be reached");
            tokio::time::sleep(wait).await;
        }
    }

    /// A connection that is ready, and what is rung when it is closed: its own, since a try that
    /// failed rings as well. Or why there is none, and what somebody can do about it.
    async fn connect(
        &self,
    ) -> Result<(MultiplexedConnection, Arc<Notify>), (BoxError, &'static str)> {
        let closed = Arc::new(Notify::new());
        let (owner, bell) = (Arc::clone(&self.owner), Arc::clone(&closed));
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(ANSWER_TIMEOUT))
            .set_push_sender(move |push: PushInfo| {
                if push.kind == PushKind::Disconnection {
                    bell.notify_one();
                }
                owner.pushed(push);
                Ok::<(), SendError>(())
            });
        let connected = async {
            let connected = self.client.get_multiplexed_async_connection_with_config(&config);
            let mut connection = connected.await?;
            ping(&mut connection).await?;
            self.owner.prepare(&mut connection).await?;
            Ok(connection)
        };
        // The client's own bound does not hold for a server that accepts and then says nothing.
        match tokio::time::timeout(self.connect_timeout, connected).await {
            Ok(Ok(connection)) => Ok((connection, closed)),
            Ok(Err(error)) => {
                let next = next_step(&error);
                Err((error.into(), next))
            }
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
