//! The server as a component: bound first, then run, then drained.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use antiphon_core::{BoxError, Component, Health, Shutdown, ShutdownHandle, Stage};
use antiphon_telemetry::Telemetry;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, sleep_until};

use super::answer::Answers;
use super::layers::Calls;
use super::listener::{self, BindError, Gate};
use super::methods::ServedTwice;
use super::settings::ServerSettings;
use super::worker::Worker;
use crate::service::Service;

/// The most time that open streams get after the drain began.
const STREAMS_GRACE: Duration = Duration::from_secs(5);
/// The part of [`Health`] that says that the server drains.
const HEALTH_PART: &str = "server";

/// What a server is made of. See [`Server::builder`].
#[derive(Default)]
pub struct ServerBuilder {
    settings: ServerSettings,
    telemetry: Telemetry,
    health: Health,
    services: Vec<Arc<dyn Service>>,
}

impl fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.services.iter().map(|service| service.info().name).collect();
        f.debug_struct("ServerBuilder").field("services", &names).finish_non_exhaustive()
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port could not be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Two services have one name.
    #[error(transparent)]
    ServedTwice(#[from] ServedTwice),
    /// The system gave no thread or no reactor.
    #[error("cannot start the threads that serve")]
    Threads(#[source] io::Error),
}

impl ServerBuilder {
    /// With these settings in place of the defaults.
    #[must_use]
    pub fn settings(mut self, settings: ServerSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Records what happens here.
    #[must_use]
    pub fn telemetry(mut self, telemetry: &Telemetry) -> Self {
        self.telemetry = telemetry.clone();
        self
    }

    /// Answers health checks from here, and says here that it drains.
    #[must_use]
    pub fn health(mut self, health: &Health) -> Self {
        self.health = health.clone();
        self
    }

    /// Answers the calls of one more service.
    #[must_use]
    pub fn service(mut self, service: Arc<dyn Service>) -> Self {
        self.services.push(service);
        self
    }

    /// Takes the port and starts the threads. Connections that come now wait until the server runs.
    ///
    /// Must be called within a Tokio runtime, the one that will run the server.
    ///
    /// # Errors
    /// [`StartError`] says what to change.
    pub fn bind(self) -> Result<Server, StartError> {
        let calls = Calls::new(&self.services, self.settings, &self.telemetry)?;
        let settings = calls.settings();
        let listener = listener::bind(settings.listen)?;
        let address = listener.local_addr().map_err(StartError::Threads)?;
        let answers = Arc::new(Answers::new(&calls));
        let (drain, shutdown) = ShutdownHandle::new();
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let count = if settings.workers == 0 { cores } else { settings.workers };
        let workers = (0..count)
            .map(|number| Worker::start(number, &calls, Arc::clone(&answers), shutdown.clone()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(StartError::Threads)?;
        let gate = Gate::new(
            settings.connections_max,
            settings.connections_per_address_max,
            calls.metrics(),
        );
        Ok(Server { address, listener, gate, workers, drain, calls, health: self.health })
    }
}

/// A server that has its port. Run it as a [`Component`]; dropping it ends it at once.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    listener: TcpListener,
    gate: Gate,
    workers: Vec<Worker>,
    drain: ShutdownHandle,
    calls: Calls,
    health: Health,
}

impl Server {
    /// A server with default settings and no service yet.
    #[must_use]
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// The address it listens on, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Hands connections to the least loaded worker, for ever.
    async fn accept(&self) {
        loop {
            let (stream, admitted) = self.gate.next(&self.listener).await;
            // The worker has a reactor of its own.
            match stream.into_std() {
                Ok(stream) => {
                    if let Some(worker) = self.workers.iter().min_by_key(|worker| worker.load()) {
                        worker.hand((stream, admitted));
                    }
                }
                Err(error) => tracing::debug!(%error, "connection lost before it was served"),
            }
        }
    }
}

impl Component for Server {
    fn name(&self) -> &str {
        "server"
    }

    fn stage(&self) -> Stage {
        Stage::Serve
    }

    async fn run(self, shutdown: Shutdown) -> Result<(), BoxError> {
        self.health.well(HEALTH_PART);
        tracing::info!(address = %self.address, workers = self.workers.len(), "serving");
        tokio::select! {
            () = self.accept() => {}
            () = shutdown.draining() => {}
        }
        // Tell the balancers first, and go on serving until they have understood.
        self.health.unwell(HEALTH_PART, "draining");
        tokio::select! {
            () = self.accept() => {}
            () = sleep(self.calls.settings().lame_duck) => {}
            () = shutdown.cut() => {}
        }
        let Self { listener, workers, drain, calls, .. } = self;
        drop(listener);
        let now = Instant::now();
        let left = shutdown
            .drain_deadline()
            .map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        drain.drain(left);
        let ended = async {
            for worker in workers {
                worker.ended().await;
            }
        };
        let streams = async {
            sleep_until(now + STREAMS_GRACE.min(left / 2)).await;
            calls.end_streams();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = ended => tracing::info!("served everything"),
            () = streams => {}
            () = shutdown.cut() => {
                drain.cut();
                tracing::warn!("cut off what was not finished in time");
            }
        }
        Ok(())
    }
}
