//! What a channel counts. Instruments are looked up by labels once and kept.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Code, Status};
use antiphon_resilience::Verdict;
use antiphon_resilience::retry::Stop;
use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::{Counter, Family, Histogram, Registry, SECONDS};
use parking_lot::RwLock;

use crate::service::MethodInfo;

/// Histograms by method and status code, 0 for OK.
type Cached = RwLock<HashMap<(&'static str, u8), Histogram>>;
type ByMethod = [(&'static str, String); 3];
type ByTarget = [(&'static str, Arc<str>); 1];
type ByTargetAnd = [(&'static str, Arc<str>); 2];

#[derive(Clone)]
struct Instruments {
    durations: Family<ByMethod, Histogram, fn() -> Histogram>,
    attempts: Family<ByTargetAnd, Counter>,
    retries: Family<ByTargetAnd, Counter>,
    stops: Family<ByTargetAnd, Counter>,
    throttled: Family<ByTarget, Counter>,
    hedges: Family<ByTarget, Counter>,
    ejections: Family<ByTarget, Counter>,
}

impl Instruments {
    fn register(registry: &mut Registry) -> Self {
        let durations =
            Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> Histogram);
        let instruments = Self {
            durations: durations.clone(),
            attempts: Family::default(),
            retries: Family::default(),
            stops: Family::default(),
            throttled: Family::default(),
            hedges: Family::default(),
            ejections: Family::default(),
        };
        registry.register(
            "rpc_client_call_duration_seconds",
            "How long calls to other services took, all attempts together",
            durations,
        );
        registry.register(
            "rpc_client_attempts",
            "Attempts by what their end says of the instance",
            instruments.attempts.clone(),
        );
        registry.register(
            "rpc_client_retries",
            "Attempts after the first: counted against the budget, or transparent",
            instruments.retries.clone(),
        );
        registry.register(
            "rpc_client_failures",
            "Calls that failed, by why there was no further attempt",
            instruments.stops.clone(),
        );
        registry.register(
            "rpc_client_throttled",
            "Calls held back because most of the last ones failed",
            instruments.throttled.clone(),
        );
        registry.register(
            "rpc_client_hedges",
            "Second attempts begun before the first had ended",
            instruments.hedges.clone(),
        );
        registry.register(
            "rpc_client_ejections",
            "Instances set aside because they failed",
            instruments.ejections.clone(),
        );
        instruments
    }
}

/// The instruments of one target.
#[derive(Clone)]
pub(super) struct Metrics {
    target: Arc<str>,
    instruments: Instruments,
    cached: Arc<Cached>,
    /// By verdict: these are on the path of every call.
    attempts: [Counter; 4],
}

impl Metrics {
    pub(super) fn new(telemetry: &Telemetry, target: &str) -> Self {
        let instruments = telemetry.instruments(Instruments::register);
        let target: Arc<str> = target.into();
        let attempts = ["accepted", "failed", "shed", "neutral"].map(|outcome| {
            instruments.attempts.get_or_create(&labels(&target, "outcome", outcome))
        });
        Self { target, instruments, cached: Arc::default(), attempts }
    }

    /// A call has ended.
    pub(super) fn record(&self, method: &MethodInfo, status: Option<&Status>, took: Duration) {
        let code = status.map_or(0, |status| status.code().number());
        let key = (method.path, code);
        let known = self.cached.read().get(&key).cloned();
        let histogram = known.unwrap_or_else(|| {
            let labels = [
                ("rpc_method", method.path.trim_start_matches('/').to_owned()),
                ("rpc_status_code", Code::from_number(code).map_or("OK", Code::name).to_owned()),
                ("server_address", self.target.to_string()),
            ];
            let histogram = self.instruments.durations.get_or_create(&labels);
            self.cached.write().insert(key, histogram.clone());
            histogram
        });
        histogram.observe(took.as_secs_f64());
    }

    /// An attempt has ended.
    pub(super) fn attempted(&self, verdict: Verdict) {
        let place = match verdict {
            Verdict::Accepted => 0,
            Verdict::Failed => 1,
            Verdict::Shed => 2,
            Verdict::Neutral => 3,
        };
        self.attempts[place].inc();
    }

    /// Another attempt is made.
    pub(super) fn retried(&self, transparent: bool) {
        let kind = if transparent { "transparent" } else { "counted" };
        self.instruments.retries.get_or_create(&labels(&self.target, "kind", kind)).inc();
    }

    /// No other attempt is made.
    pub(super) fn stopped(&self, stop: Stop) {
        let reason = match stop {
            Stop::Expired | Stop::NoTime => "no_time",
            Stop::NotRetryable => "not_retryable",
            Stop::AttemptsUsed => "attempts_used",
            Stop::BudgetSpent => "budget_spent",
            Stop::PushedBack => "pushed_back",
            Stop::CallerRetries => "caller_retries",
            Stop::Rejected => "rejected",
            Stop::Committed => "committed",
            Stop::ReplayOverflow => "replay_overflow",
        };
        self.failed(reason);
    }

    /// A call failed because there was nobody to send it to.
    pub(super) fn unreachable(&self) {
        self.failed("unreachable");
    }

    fn failed(&self, reason: &str) {
        self.instruments.stops.get_or_create(&labels(&self.target, "reason", reason)).inc();
    }

    pub(super) fn throttled(&self) {
        self.instruments.throttled.get_or_create(&self.target()).inc();
    }

    pub(super) fn hedged(&self) {
        self.instruments.hedges.get_or_create(&self.target()).inc();
    }

    pub(super) fn ejected(&self) {
        self.instruments.ejections.get_or_create(&self.target()).inc();
    }

    fn target(&self) -> ByTarget {
        [("server_address", Arc::clone(&self.target))]
    }
}

fn labels(target: &Arc<str>, name: &'static str, value: &str) -> ByTargetAnd {
    [("server_address", Arc::clone(target)), (name, value.into())]
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Metrics({})", self.target)
    }
}
