//! Logs, metrics and traces, and the semantic names they use.
//!
//! A [`Telemetry`] handle is passed to what records; there are no globals but the `tracing`
//! subscriber. A crate keeps its own instruments and registers them once, when it is built: looking
//! an instrument up by its labels on every call would cost more than recording.

pub mod metrics;
mod span;

use std::sync::Arc;

use parking_lot::Mutex;

pub use span::{Span, SpanKind};

/// Where a process records what it does. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    registry: Mutex<metrics::Registry>,
}

impl Telemetry {
    /// Metrics that can be read, and no exporter of traces.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds instruments.
    pub fn register(&self, add: impl FnOnce(&mut metrics::Registry)) {
        add(&mut self.0.registry.lock());
    }
}
