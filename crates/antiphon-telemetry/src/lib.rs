//! Logs, metrics and traces, and the semantic names they use.
//!
//! A [`Telemetry`] handle is passed to what records; there are no globals but the `tracing`
//! subscriber. A crate keeps its own instruments and registers them once, when it is built: looking
//! an instrument up by its labels on every call would cost more than recording.

pub mod metrics;
mod span;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

pub use span::{Span, SpanKind};

/// Where a process records what it does. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    registry: Mutex<metrics::Registry>,
    instruments: Mutex<HashMap<TypeId, Box<dyn Any + Send + Sync>>>,
}

impl Telemetry {
    /// Metrics that can be read, and no exporter of traces.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The instruments of type `T`, made and registered by the first who asks.
    ///
    /// Every component of a kind (each consumer, each relay, each channel) gets the same ones, so a
    /// name is registered once. `T` is a type of the asking crate: a few cheap-to-clone families.
    pub fn instruments<T>(&self, make: impl FnOnce(&mut metrics::Registry) -> T) -> T
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
    pub fn register(&self, add: impl FnOnce(&mut metrics::Registry)) {
        add(&mut self.0.registry.lock());
    }
}
