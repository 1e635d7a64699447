//! One connection that is kept: made anew whenever it is lost, for as long as anybody needs it.
//!
//! Each incarnation is a connection of its own with an epoch of its own; nothing of an earlier one
//! is used again (the client library's own recovery is off). Publishing and consuming have a
//! connection each, since a server that is short of memory stops reading from those that publish,
//! and acknowledgements must still get through.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::BoxFuture;
use futures_util::{Stream, StreamExt};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::error::{Fault, OpenError};
use crate::settings::{Settings, address};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether the connection is still there: not everything is reported.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a connection may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// How to get to the server.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) uri: AMQPUri,
    pub(crate) tls: OwnedTLSConfig,
    pub(crate) timeout: Duration,
}

/// One incarnation of a connection.
pub(crate) struct Live {
    /// Grows with each incarnation.
    pub(crate) epoch: u64,
    connection: Connection,
    condemned: Notify,
}

#[derive(Clone)]
enum State {
    Down(Arc<str>),
    Up(Arc<Live>),
}

/// What must be done on a new connection before anybody else may use it.
pub(crate) type Prepare =
    Box<dyn Fn(Arc<Live>) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// A connection that is kept up.
pub(crate) struct Line {
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
}

impl Access {
    /// Reads the files of certificates.
    pub(crate) fn new(settings: &Settings) -> Result<Self, OpenError> {
        let uri = settings.check()?;
        let read = |path: &std::path::PathBuf| {
            std::fs::read(path).map_err(|error| OpenError::File {
                path: path.clone(),
                problem: format!("cannot be read: {error}"),
            })
        };
        if uri.scheme == AMQPScheme::AMQPS {
            // Where a program has two cryptographic libraries, TLS needs to be told which; an error
            // says that somebody has chosen already.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        let mut tls = OwnedTLSConfig::default();
        if let Some(path) = &settings.ca_file {
            let pem = String::from_utf8_lossy(&read(path)?).into_owned();
            if !pem.contains("-----BEGIN CERTIFICATE-----") {
                let problem = "holds no PEM certificate".to_owned();
                return Err(OpenError::File { path: path.clone(), problem });
            }
            tls.cert_chain = Some(pem);
        }
        if let (Some(certificate), Some(key)) = (&settings.certificate_file, &settings.key_file) {
            tls.identity = Some(OwnedIdentity::PKCS8 { pem: read(certificate)?, key: read(key)? });
        }
        Ok(Self { uri, tls, timeout: settings.connect_timeout.0 })
    }

    /// Connects once.
    pub(crate) async fn connect(&self, role: &str) -> Result<Connection, OpenError> {
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("antiphon {role}").into())
            .with_client_property("product".into(), "Antiphon".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let runtime = lapin::runtime::default_runtime().map_err(|error| self.problem(&error))?;
        let connecting = Connection::connect_uri_with_config(
            self.uri.clone(),
            properties,
            self.tls.clone(),
            runtime,
        );
        match timeout(self.timeout, connecting).await {
            Ok(connected) => connected.map_err(|error| self.problem(&error)),
            Err(_) => Err(OpenError::Unreachable {
                address: address(&self.uri),
                problem: format!("no answer within {:?}", self.timeout),
            }),
        }
    }

    fn problem(&self, error: &lapin::Error) -> OpenError {
        let address = address(&self.uri);
        match Fault::of(error) {
            Fault::Denied(_) => OpenError::Credentials {
                address,
                user: self.uri.authority.userinfo.username.clone(),
            },
            Fault::NotAllowed(problem) => {
                OpenError::VirtualHost { address, name: self.uri.vhost.clone(), problem }
            }
            _ if error.is_io_error() => {
                OpenError::Unreachable { address, problem: error.to_string() }
            }
            fault => OpenError::Refused { address, problem: fault.text().to_owned() },
        }
    }
}

impl Live {
    /// A new channel.
    pub(crate) async fn channel(&self) -> lapin::Result<Channel> {
        self.connection.create_channel().await
    }

    /// Whether the server reads nothing from this connection, since it is short of memory or disk.
    pub(crate) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    /// Ends this incarnation: something is wrong with it that it does not know of.
    pub(crate) fn condemn(&self, why: &str) {
        tracing::warn!(epoch = self.epoch, why, "RabbitMQ connection given up");
        self.condemned.notify_one();
    }

    async fn close(&self) {
        let goodbye = self.connection.close(200, "done".into());
        if !matches!(timeout(GOODBYE, goodbye).await, Ok(Ok(()))) {
            tracing::debug!(epoch = self.epoch, "RabbitMQ connection ended without a goodbye");
        }
    }
}

impl Line {
    /// Keeps a connection, beginning with `first` if there is one.
    pub(crate) fn keep(
        access: Access,
        role: &'static str,
        first: Option<Connection>,
        prepare: Prepare,
    ) -> Self {
        let (sender, state) = watch::channel(State::Down("not connected yet".into()));
        let keeper = Keeper { access, role, prepare, state: sender };
        Self { state, task: tokio::spawn(keeper.run(first)) }
    }

    /// The connection; waits for it if it is away. The error says why it is.
    pub(crate) async fn live(&self, within: Duration) -> Result<Arc<Live>, Arc<str>> {
        let mut state = self.state.clone();
        let up = state.wait_for(|state| match state {
            State::Up(live) => live.is_connected(),
            State::Down(_) => false,
        });
        match timeout(within, up).await {
            Ok(Ok(found)) => match &*found {
                State::Up(live) => Ok(Arc::clone(live)),
                State::Down(why) => Err(Arc::clone(why)),
            },
            Ok(Err(_)) => Err("the broker was closed".into()),
            Err(_) => Err(self.trouble()),
        }
    }

    fn trouble(&self) -> Arc<str> {
        match &*self.state.borrow() {
            State::Down(why) => Arc::clone(why),
            State::Up(_) => "the connection is about to be made anew".into(),
        }
    }

    /// Waits until the incarnation `epoch` is over; yields why.
    pub(crate) fn ended(&self, epoch: u64) -> BoxFuture<'static, Arc<str>> {
        let mut state = self.state.clone();
        Box::pin(async move {
            let over = state.wait_for(|state| match state {
                State::Up(live) => live.epoch != epoch,
                State::Down(_) => true,
            });
            match over.await.as_deref() {
                Ok(State::Down(why)) => Arc::clone(why),
                _ => "the connection was made anew".into(),
            }
        })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // The connection closes itself with its last handle.
        self.task.abort();
    }
}

struct Keeper {
    access: Access,
    role: &'static str,
    prepare: Prepare,
    state: watch::Sender<State>,
}

impl Keeper {
    async fn run(self, mut first: Option<Connection>) {
        let mut epoch = 0;
        let mut backoff = BACKOFF_MIN;
        loop {
            let connected = match first.take() {
                Some(connection) => Ok(connection),
                None => self.access.connect(self.role).await,
            };
            let begun = Instant::now();
            let why: Arc<str> = match connected {
                Ok(connection) => {
                    epoch += 1;
                    self.live(connection, epoch).await
                }
                Err(error) => error.to_string().into(),
            };
            tracing::warn!(role = self.role, %why, "RabbitMQ connection lost");
            self.state.send_replace(State::Down(why));
            if begun.elapsed() > BACKOFF_MAX {
                backoff = BACKOFF_MIN;
            }
            tokio::time::sleep(backoff.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// One incarnation from beginning to end; yields why it ended.
    async fn live(&self, connection: Connection, epoch: u64) -> Arc<str> {
        // One listener only: events are shared out among them, not copied.
        let events = connection.events_listener();
        let live = Arc::new(Live { epoch, connection, condemned: Notify::new() });
        match timeout(self.access.timeout * 4, (self.prepare)(Arc::clone(&live))).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return why.into(),
            Err(_) => return "the topology was not declared in time".into(),
        }
        self.state.send_replace(State::Up(Arc::clone(&live)));
        let why = watch_over(&live, events).await;
        self.state.send_replace(State::Down(Arc::clone(&why)));
        live.close().await;
        why
    }
}

/// Waits for the end of a connection.
async fn watch_over(live: &Live, events: impl Stream<Item = Event>) -> Arc<str> {
    let mut events = std::pin::pin!(events);
    let mut said: Option<String> = None;
    loop {
        tokio::select! {
            () = live.condemned.notified() => return "given up".into(),
            event = events.next() => match event {
                Some(Event::Error(error)) => said = Some(error.to_string()),
                Some(Event::ConnectionBlocked(reason)) => {
                    tracing::warn!(reason, "RabbitMQ takes no messages for now");
                }
                Some(Event::ConnectionUnblocked) => {
                    tracing::info!("RabbitMQ takes messages again");
                }
                Some(_) => {}
                None => tokio::time::sleep(LOOK_EVERY).await,
            },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        // An error may be that of a channel only.
        if !live.is_connected() {
            return said.unwrap_or_else(|| "the connection ended".to_owned()).into();
        }
    }
}
