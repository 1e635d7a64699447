//! What a channel counts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Code, Status};
use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::{Family, Histogram, SECONDS};
use parking_lot::RwLock;

use crate::service::MethodInfo;

/// Histograms by method and status code, 0 for OK.
type Cached = RwLock<HashMap<(&'static str, u8), Histogram>>;

type Labels = [(&'static str, String); 3];

#[derive(Clone)]
struct Instruments {
    durations: Family<Labels, Histogram, fn() -> Histogram>,
}

/// Durations by method and outcome. Histograms are looked up by labels once and kept.
#[derive(Clone)]
pub(super) struct Metrics {
    target: Arc<str>,
    instruments: Instruments,
    cached: Arc<Cached>,
}

impl Metrics {
    pub(super) fn new(telemetry: &Telemetry, target: &str) -> Self {
        let instruments = telemetry.instruments(|registry| {
            let durations = Family::new_with_constructor(new_histogram as fn() -> Histogram);
            registry.register(
                "rpc_client_call_duration_seconds",
                "How long calls to other services took",
                durations.clone(),
            );
            Instruments { durations }
        });
        Self { target: target.into(), instruments, cached: Arc::default() }
    }

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
}

fn new_histogram() -> Histogram {
    Histogram::new(SECONDS)
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Metrics({})", self.target)
    }
}
