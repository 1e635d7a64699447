//! The server as a component: bound first, then run, then drained.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use antiphon_core::{BoxError, Component, Health, Shutdown, ShutdownHandle, Stage};
use antiphon_resilience::CpuUse;
use antiphon_telemetry::Telemetry;
use connectrpc_reflection::ReflectionError;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, sleep_until};

use super::answer::Answers;
use super::health::HealthService;
use super::layers::Calls;
use super::listener::{self, BindError, Gate};
use super::methods::ServicesError;
use super::reflection::Reflection;
use super::settings::ServerSettings;
use super::watch::{self, CpuReader};
use super::worker::Worker;
use crate::rest::{Rest, RestError};
use crate::service::Service;

/// The most time that open streams get after the drain began.
const STREAMS_GRACE: Duration = Duration::from_secs(5);
/// The part of [`Health`] that says that the server drains.
const HEALTH_PART: &str = "server";

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port could not be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The services do not fit together, or the settings do not fit them.
    #[error(transparent)]
    Services(#[from] ServicesError),
    /// The descriptor set of a service cannot be read; its build is at fault.
    #[error("the descriptors of the services do not fit together")]
    Descriptors(#[from] ReflectionError),
    /// The services cannot be answered over REST; their contract is at fault.
    #[error(transparent)]
    Rest(#[from] RestError),
    /// The system gave no thread or no reactor.
    #[error("cannot start the threads that serve")]
    Threads(#[source] io::Error),
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
    cpu: CpuReader,
}

impl Server {
    /// Takes the port and starts the threads. Connections that come now wait until the server runs.
    ///
    /// Health (of which `health` is asked) and reflection are served along with `services`. Nothing
    /// is awaited, but the runtime that will run the server must be there.
    ///
    /// # Errors
    /// [`StartError`] says what to change.
    pub async fn bind(
        mut services: Vec<Arc<dyn Service>>,
        settings: ServerSettings,
        telemetry: &Telemetry,
        health: &Health,
    ) -> Result<Self, StartError> {
        let own = services.clone();
        services.push(Arc::new(HealthService::new(health, &services)));
        for reflection in Reflection::new(&services)? {
            services.push(Arc::new(reflection));
        }
        let calls = Calls::new(&services, settings, telemetry)?;
        let rest = Rest::new(&own, &calls)?;
        let settings = calls.settings();
        let listener = listener::bind(settings.listen)?;
        let address = listener.local_addr().map_err(StartError::Threads)?;
        let answers = Arc::new(Answers::new(&calls, rest));
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
        let health = health.clone();
        let cpu = CpuReader::default();
        Ok(Self { address, listener, gate, workers, drain, calls, health, cpu })
    }

    /// The address it listens on, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks `read` and not the system how busy the processor is.
    #[must_use]
    pub fn with_cpu_use(self, read: impl Fn() -> CpuUse + Send + Sync + 'static) -> Self {
        Self { cpu: CpuReader::new(read), ..self }
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

    async fn run(mut self, shutdown: Shutdown) -> Result<(), BoxError> {
        let calls = self.calls.clone();
        let cpu = std::mem::take(&mut self.cpu);
        tokio::select! {
            ended = self.serve(shutdown) => ended,
            () = watch::watch(&calls, &cpu) => Ok(()),
        }
    }
}

impl Server {
    async fn serve(self, shutdown: Shutdown) -> Result<(), BoxError> {
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
