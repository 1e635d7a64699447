//! What a server counts and measures.
//!
//! Names are OpenTelemetry's where it has one. Instruments of a method are looked up once per method,
//! protocol and code, and kept beside the method.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use antiphon_core::{Code, Context};
use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::{Counter, Family, Gauge, Histogram, Registry, SECONDS};

use super::Protocol;

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Durations = Family<Labels<3>, Histogram, fn() -> Histogram>;

/// Why something was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shed {
    /// A limit on how often the method or its service is called.
    Rate,
    /// The processor is busy.
    Cpu,
    /// The client has its share of a busy server.
    Fairness,
    /// The adaptive limit of the method.
    Concurrency,
    /// The limit on calls in progress in the process.
    CallsMax,
    /// The limit on connections.
    ConnectionsMax,
    /// The limit on connections of one address.
    ConnectionsPerAddress,
}

impl Shed {
    /// Every reason, in the order of declaration.
    pub(crate) const ALL: [Self; 7] = [
        Self::Rate,
        Self::Cpu,
        Self::Fairness,
        Self::Concurrency,
        Self::CallsMax,
        Self::ConnectionsMax,
        Self::ConnectionsPerAddress,
    ];

    /// The name in metrics and logs.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Cpu => "cpu",
            Self::Fairness => "fairness",
            Self::Concurrency => "concurrency",
            Self::CallsMax => "calls_max",
            Self::ConnectionsMax => "connections_max",
            Self::ConnectionsPerAddress => "connections_per_address",
        }
    }
}

/// How the store of shared rate limits answered a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Calls may be let in.
    Granted,
    /// None may.
    Refused,
    /// It did not.
    Failed,
}

impl Asked {
    /// Every answer with its name in metrics, in the order of declaration.
    const ALL: [&'static str; 3] = ["granted", "refused", "failed"];
}

/// The instruments of a server.
#[derive(Clone, Debug)]
pub(crate) struct ServerMetrics {
    durations: Durations,
    shed: [Counter; Shed::ALL.len()],
    limits: Family<Labels<1>, Gauge>,
    asked: [Counter; Asked::ALL.len()],
    /// 1 while the store of shared rate limits is away.
    pub(crate) rates_alone: Gauge,
    /// The part of the processor time that the process asks for.
    pub(crate) cpu_load: Gauge<f64, AtomicU64>,
    /// Calls in progress.
    pub(crate) active_calls: Gauge,
    /// Connections open.
    pub(crate) connections: Gauge,
    /// Handlers that panicked.
    pub(crate) panics: Counter,
}

impl ServerMetrics {
    pub(crate) fn new(telemetry: &Telemetry) -> Self {
        telemetry.instruments(Self::register)
    }

    fn register(registry: &mut Registry) -> Self {
        let durations =
            Durations::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> Histogram);
        let shed = Family::<Labels<1>, Counter>::default();
        let asked = Family::<Labels<1>, Counter>::default();
        let metrics = Self {
            durations: durations.clone(),
            asked: Asked::ALL.map(|how| asked.get_or_create(&[("outcome", how)]).clone()),
            rates_alone: Gauge::default(),
            shed: Shed::ALL.map(|why| shed.get_or_create(&[("reason", why.label())]).clone()),
            limits: Family::default(),
            cpu_load: Gauge::default(),
            active_calls: Gauge::default(),
            connections: Gauge::default(),
            panics: Counter::default(),
        };
        registry.register(
            "rpc_server_call_duration_seconds",
            "How long calls took to answer",
            durations,
        );
        registry.register(
            "rpc_server_active_calls",
            "Calls in progress",
            metrics.active_calls.clone(),
        );
        registry.register(
            "rpc_server_connections",
            "Connections open",
            metrics.connections.clone(),
        );
        registry.register(
            "rpc_server_shed",
            "Calls and connections turned away because of a limit",
            shed,
        );
        registry.register(
            "rpc_server_rate_store_asked",
            "Questions to the store of shared rate limits",
            asked,
        );
        registry.register(
            "rpc_server_rates_alone",
            "1 while the store of shared rate limits is away and this instance keeps them alone",
            metrics.rates_alone.clone(),
        );
        registry.register(
            "rpc_server_cpu_load",
            "The part of the processor time it may use that the process asks for",
            metrics.cpu_load.clone(),
        );
        registry.register(
            "rpc_server_concurrency_limit",
            "The most calls of a method that may be in progress at once",
            metrics.limits.clone(),
        );
        registry.register("rpc_server_panics", "Handlers that panicked", metrics.panics.clone());
        metrics
    }

    pub(crate) fn shed(&self, why: Shed) {
        self.shed[why as usize].inc();
    }

    /// The store of shared rate limits was asked.
    pub(crate) fn asked(&self, how: Asked) {
        self.asked[how as usize].inc();
    }

    /// How often something was turned away for this reason.
    pub(crate) fn shed_so_far(&self, why: Shed) -> u64 {
        self.shed[why as usize].get()
    }

    pub(crate) fn method(&self, name: &'static str) -> MethodMetrics {
        MethodMetrics {
            name,
            durations: self.durations.clone(),
            cells: [const { [const { OnceLock::new() }; CODES] }; Protocol::ALL.len()],
            limit: OnceLock::new(),
            limits: self.limits.clone(),
        }
    }
}

/// OK and the sixteen codes.
const CODES: usize = Code::ALL.len() + 1;

/// The instruments of one method.
#[derive(Debug)]
pub(crate) struct MethodMetrics {
    name: &'static str,
    durations: Durations,
    cells: [[OnceLock<Histogram>; CODES]; Protocol::ALL.len()],
    limit: OnceLock<Gauge>,
    limits: Family<Labels<1>, Gauge>,
}

impl MethodMetrics {
    /// Records a call that ended with `code`; `None` is OK.
    pub(crate) fn record(
        &self,
        protocol: Protocol,
        code: Option<Code>,
        took: Duration,
        context: &Context,
    ) {
        self.cell(protocol, code).observe_in(took.as_secs_f64(), context);
    }

    /// Records a call that was not let in.
    pub(crate) fn refused(&self, protocol: Protocol, code: Code, took: Duration) {
        self.cell(protocol, Some(code)).observe(took.as_secs_f64());
    }

    fn cell(&self, protocol: Protocol, code: Option<Code>) -> &Histogram {
        let place = code.map_or(0, |code| usize::from(code.number()));
        self.cells[protocol as usize][place].get_or_init(|| {
            let labels = [
                ("rpc_system_name", protocol.name()),
                ("rpc_method", self.name),
                ("rpc_status_code", code.map_or("OK", Code::name)),
            ];
            self.durations.get_or_create(&labels).clone()
        })
    }

    /// Records the limit of the method.
    pub(crate) fn limit(&self, limit: u32) {
        self.limit
            .get_or_init(|| self.limits.get_or_create(&[("rpc_method", self.name)]).clone())
            .set(i64::from(limit));
    }
}
