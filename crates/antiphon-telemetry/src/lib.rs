//! Logs, metrics and traces, the semantic names they use, and the admin port that shows them.
//!
//! A [`Telemetry`] handle is passed to what records; there are no globals but the `tracing`
//! subscriber. A crate keeps its own instruments and registers them once, when it is built: looking
//! an instrument up by its labels on every call would cost more than recording.
//!
//! ```
//! use antiphon_core::Context;
//! use antiphon_telemetry::metrics::{Counter, Exposition, Family};
//! use antiphon_telemetry::{SpanKind, Telemetry};
//!
//! let telemetry = Telemetry::new();
//! let calls: Family<[(&str, &str); 1], Counter> = Family::default();
//! telemetry.register(|registry| registry.register("calls", "Calls answered", calls.clone()));
//! let get_stock = calls.get_or_create(&[("rpc_method", "GetStock")]); // keep this one
//!
//! let (context, mut span) = telemetry.span(SpanKind::Server, "GetStock", &Context::root(), &[]);
//! context.sync_scope(|| {
//!     if span.is_recording() {
//!         span.set("sku", "book");
//!     }
//!     get_stock.inc();
//! });
//! assert!(telemetry.metrics(Exposition::Prometheus).contains("calls_total{rpc_method=\"GetStock\"} 1"));
//! ```
//!
//! Nothing here fails or slows the work it observes: queues are bounded, what does not fit is counted
//! and dropped, and the exporter has a thread and a runtime of its own.

pub mod admin;
pub mod logs;
pub mod metrics;
mod settings;
mod span;
mod traces;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::Clock;
use parking_lot::Mutex;
use prometheus_client::metrics::info::Info;

pub use settings::{LogFormat, LogOutput, LogSettings, Service, TelemetrySettings, TraceSettings};
pub use span::{Span, SpanKind};
pub use traces::TracesError;

use metrics::{Exposition, ProcessCollector, Registry, Runtimes};
use traces::Tracer;

/// Where a process records what it does. Cheap to clone.
#[derive(Clone, Default)]
pub struct Telemetry(Arc<Inner>);

#[derive(Default)]
struct Inner {
    registry: Mutex<Registry>,
    instruments: Mutex<HashMap<TypeId, Box<dyn Any + Send + Sync>>>,
    runtimes: Runtimes,
    tracer: Option<Tracer>,
    logs: Option<logs::Sink>,
}

/// Telemetry cannot begin as the settings ask.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The logs cannot.
    #[error("telemetry.log: {0}")]
    Logs(#[from] logs::LogsError),
    /// The traces cannot.
    #[error("telemetry.traces: {0}")]
    Traces(#[from] TracesError),
}

impl Telemetry {
    /// Metrics that can be read, no logs and no traces: for tests and tools.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything that the settings ask for. Call it once, before anything else starts: it installs
    /// the process's `tracing` subscriber.
    ///
    /// # Errors
    /// Settings that cannot work, and a second subscriber.
    pub fn start(service: &Service, settings: &TelemetrySettings) -> Result<Self, StartError> {
        let logs = logs::start(service, &settings.log)?;
        Self::assemble(service, settings, Some(logs))
    }

    /// Everything but logs: for a program that installs a `tracing` subscriber of its own, and for
    /// tests, of which several run in one process.
    ///
    /// # Errors
    /// Settings that cannot work.
    pub fn without_logs(
        service: &Service,
        settings: &TelemetrySettings,
    ) -> Result<Self, StartError> {
        Self::assemble(service, settings, None)
    }

    fn assemble(
        service: &Service,
        settings: &TelemetrySettings,
        logs: Option<logs::Sink>,
    ) -> Result<Self, StartError> {
        let tracer = traces::start(service, &settings.traces)?;
        let mut registry = Registry::default();
        registry.register(
            "target",
            "The service that these metrics are about",
            Info::new([
                ("service_name", service.name.clone()),
                ("service_version", service.version.clone()),
                ("service_instance_id", service.instance.clone()),
            ]),
        );
        let started = Clock::system().now();
        registry.register_collector(Box::new(ProcessCollector { started }));
        let runtimes = Runtimes::default();
        registry.register_collector(Box::new(runtimes.clone()));
        if let Some(logs) = &logs {
            logs.register(&mut registry);
        }
        if let Some(tracer) = &tracer {
            tracer.register(&mut registry);
        }
        Ok(Self(Arc::new(Inner {
            registry: Mutex::new(registry),
            instruments: Mutex::default(),
            runtimes,
            tracer,
            logs,
        })))
    }

    /// The instruments of type `T`, made and registered by the first who asks.
    ///
    /// Every component of a kind (each consumer, each relay, each channel) gets the same ones, so a
    /// name is registered once. `T` is a type of the asking crate: a few cheap-to-clone families.
    pub fn instruments<T>(&self, make: impl FnOnce(&mut Registry) -> T) -> T
    where
        T: Clone + Send + Sync + 'static,
    {
        let mut made = self.0.instruments.lock();
        let kept = made.entry(TypeId::of::<T>()).or_insert_with(|| {
            let instruments: Box<dyn Any + Send + Sync> =
                Box::new(make(&mut self.0.registry.lock()));
            instruments
        });
        match kept.downcast_ref::<T>() {
            Some(instruments) => instruments.clone(),
            None => unreachable!("instruments are kept under the id of their type"),
        }
    }

    /// Adds instruments of which a process has only one set.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.0.registry.lock());
    }

    /// Shows in the metrics how busy the runtime of the calling thread is, under this name. A runtime
    /// that is not watched costs nothing; does nothing outside a runtime.
    pub fn watch_runtime(&self, name: &str) {
        self.0.runtimes.watch_current(name);
    }

    /// All metrics as text.
    #[must_use]
    pub fn metrics(&self, exposition: Exposition) -> String {
        exposition.write(&self.0.registry.lock())
    }

    /// Sends what is recorded so far: spans to their collector, lines to their output. Call it when
    /// everything else has ended; returns when done or when `within` is over.
    ///
    /// # Cancel safety
    /// Safe: what is not sent yet is sent later, if the process lives.
    pub async fn flush(&self, within: Duration) {
        let spans = async {
            if let Some(tracer) = &self.0.tracer {
                tracer.flush(within).await;
            }
        };
        if tokio::time::timeout(within, spans).await.is_err() {
            tracing::warn!("spans were lost: their collector did not take them in time");
        }
        if let Some(logs) = &self.0.logs {
            logs.flush(within).await;
        }
    }

    /// Whether spans go anywhere: ask before looking for what they would be about.
    #[must_use]
    pub fn records_spans(&self) -> bool {
        self.0.tracer.is_some()
    }

    pub(crate) fn tracer(&self) -> Option<&Tracer> {
        self.0.tracer.as_ref()
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let traces = if self.0.tracer.is_some() { "with traces" } else { "without traces" };
        write!(f, "Telemetry({traces})")
    }
}
