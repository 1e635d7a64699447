//! Sends finished spans to a collector, over OTLP.
//!
//! The exporter is a thread with a runtime of its own: exporters on the runtime they observe have
//! deadlocked where it has one worker, and a busy service must not starve its own traces. Spans wait
//! in a bounded queue; what does not fit is dropped and counted.

mod exporter;
mod otlp;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::TraceId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::metrics::{Counter, Registry};
use crate::settings::{Service, TraceSettings};
use crate::span::Finished;
use exporter::Exporter;
use upload::Endpoint;

/// Traces cannot be recorded as the settings ask.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The endpoint is not one that spans can be sent to.
    #[error(
        "`endpoint` is {endpoint:?}: {problem}; write it as \"http://127.0.0.1:4318/v1/traces\""
    )]
    Endpoint {
        /// What the settings say.
        endpoint: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The share is not one.
    #[error("`sample_ratio` is {0}: it must be between 0 and 1")]
    SampleRatio(f64),
    /// A limit is zero.
    #[error("`{0}` must be at least 1")]
    Zero(&'static str),
    /// The machine refused a thread.
    #[error("cannot start the exporter: {0}")]
    Thread(#[from] std::io::Error),
}

/// Hands spans to the exporter. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Tracer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Trace ids whose lower half is below this are recorded.
    threshold: u64,
    spans: mpsc::Sender<Finished>,
    flushes: mpsc::UnboundedSender<Flush>,
    counts: Counts,
}

/// Asks the exporter to send everything now, and to say when it has.
#[derive(Debug)]
pub(crate) struct Flush {
    until: Instant,
    done: oneshot::Sender<()>,
}

/// What became of spans.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    exported: Counter,
    dropped: Counter,
}

/// Starts the exporter, if the settings name an endpoint.
pub(crate) fn start(
    service: &Service,
    settings: &TraceSettings,
) -> Result<Option<Tracer>, TracesError> {
    if !(0.0..=1.0).contains(&settings.sample_ratio) {
        return Err(TracesError::SampleRatio(settings.sample_ratio));
    }
    for (name, limit) in [("queue", settings.queue), ("batch", settings.batch)] {
        if limit == 0 {
            return Err(TracesError::Zero(name));
        }
    }
    let Some(endpoint) = &settings.endpoint else {
        return Ok(None);
    };
    let endpoint = Endpoint::parse(endpoint)?;
    let (spans, queue) = mpsc::channel(settings.queue);
    let (flushes, asked) = mpsc::unbounded_channel();
    let counts = Counts::default();
    Exporter::new(endpoint, service, settings, counts.clone()).spawn(queue, asked)?;
    let threshold = threshold(settings.sample_ratio);
    Ok(Some(Tracer(Arc::new(Inner { threshold, spans, flushes, counts }))))
}

/// The lower half of a trace id is random, so its size decides the same for a trace in every service.
fn threshold(ratio: f64) -> u64 {
    if ratio >= 1.0 { u64::MAX } else { (ratio * u64::MAX as f64) as u64 }
}

impl Tracer {
    /// Whether a new trace is recorded.
    pub(crate) fn samples(&self, trace: TraceId) -> bool {
        // Truncation to the lower half is meant.
        let lower = trace.0 as u64;
        lower < self.0.threshold || self.0.threshold == u64::MAX
    }

    pub(crate) fn send(&self, span: Finished) {
        if self.0.spans.try_send(span).is_err() {
            self.0.counts.dropped.inc();
        }
    }

    /// Completes when everything sent so far was exported or given up.
    pub(crate) async fn flush(&self, within: Duration) {
        let (done, completed) = oneshot::channel();
        if self.0.flushes.send(Flush { until: Instant::now() + within, done }).is_ok() {
            // An error means that the exporter is gone, and nothing is left to wait for.
            let _ = completed.await;
        }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let counts = &self.0.counts;
        let help = "Spans sent to the collector";
        registry.register("antiphon_spans_exported", help, counts.exported.clone());
        let help = "Spans lost because the queue was full or the collector did not take them";
        registry.register("antiphon_spans_dropped", help, counts.dropped.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_decides_how_many_traces_are_recorded() {
        let recorded = |ratio: f64| {
            let threshold = threshold(ratio);
            let lower = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (1..=10_000).filter(|n| lower(*n) < threshold || threshold == u64::MAX).count()
        };
        assert_eq!(recorded(0.0), 0);
        assert_eq!(recorded(1.0), 10_000);
        assert!((2_400..2_600).contains(&recorded(0.25)));
    }

    #[test]
    fn settings_that_cannot_work_are_refused_with_their_name() {
        let service = Service::new("test", "1");
        let refused = |settings: TraceSettings| start(&service, &settings).unwrap_err().to_string();
        let default = TraceSettings::default;
        assert!(refused(TraceSettings { sample_ratio: 1.5, ..default() }).contains("sample_ratio"));
        assert!(refused(TraceSettings { batch: 0, ..default() }).contains("`batch`"));
        for endpoint in ["collector:4318", "https://collector", "http://", "grpc://x", "http://a b"]
        {
            let settings = TraceSettings { endpoint: Some(endpoint.into()), ..default() };
            assert!(refused(settings).contains(endpoint), "{endpoint}");
        }
        assert!(start(&service, &default()).unwrap().is_none());
    }
}
