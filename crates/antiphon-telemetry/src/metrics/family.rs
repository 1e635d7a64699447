//! A metric per set of labels, with an end to how many.
//!
//! A label that somebody outside can choose would otherwise fill the memory of this process and of
//! whatever scrapes it. Past the limit, observations go into one series that is marked as overflow,
//! as OpenTelemetry's specification of metrics describes.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::RwLock;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::family::MetricConstructor;
use prometheus_client::metrics::{MetricType, TypedMetric};

/// How many series one family has at most, not counting the overflow.
pub const SERIES_MAX: usize = 2_000;

/// The labels of the series that takes what is above the limit.
const OVERFLOW: [(&str, &str); 1] = [("otel_metric_overflow", "true")];

/// Metrics by their labels. Cheap to clone; clones are the same family.
pub struct Family<S, M, C = fn() -> M> {
    series: Arc<RwLock<Series<S, M>>>,
    constructor: C,
}

struct Series<S, M> {
    known: HashMap<S, M>,
    overflow: Option<M>,
}

impl<S, M> Default for Series<S, M> {
    fn default() -> Self {
        Self { known: HashMap::new(), overflow: None }
    }
}

impl<S, M: Default> Default for Family<S, M> {
    fn default() -> Self {
        Self { series: Arc::default(), constructor: M::default }
    }
}

impl<S, M, C: Clone> Clone for Family<S, M, C> {
    fn clone(&self) -> Self {
        Self { series: Arc::clone(&self.series), constructor: self.constructor.clone() }
    }
}

impl<S, M, C> fmt::Debug for Family<S, M, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Family({} series)", self.series.read().known.len())
    }
}

impl<S, M, C> Family<S, M, C> {
    /// With metrics that need more than their default: the bounds of a histogram.
    pub fn new_with_constructor(constructor: C) -> Self {
        Self { series: Arc::default(), constructor }
    }
}

impl<S: Clone + Eq + Hash, M: Clone, C: MetricConstructor<M>> Family<S, M, C> {
    /// The metric of these labels, made if nobody asked for it before.
    ///
    /// This is a lookup under a lock: keep what it returns where speed matters.
    pub fn get_or_create(&self, labels: &S) -> M {
        if let Some(metric) = self.series.read().known.get(labels) {
            return metric.clone();
        }
        let mut series = self.series.write();
        if series.known.len() < SERIES_MAX || series.known.contains_key(labels) {
            let metric = series.known.entry(labels.clone());
            return metric.or_insert_with(|| self.constructor.new_metric()).clone();
        }
        series.overflow.get_or_insert_with(|| self.constructor.new_metric()).clone()
    }

    /// [`Self::get_or_create`], by the name under which the library's own family returns a metric
    /// instead of a lock guard.
    pub fn get_or_create_owned(&self, labels: &S) -> M {
        self.get_or_create(labels)
    }

    /// The metric of these labels, if somebody asked for it before.
    #[must_use]
    pub fn get(&self, labels: &S) -> Option<M> {
        self.series.read().known.get(labels).cloned()
    }

    /// Forgets the metric of these labels; says whether there was one.
    pub fn remove(&self, labels: &S) -> bool {
        self.series.write().known.remove(labels).is_some()
    }
}

impl<S, M: TypedMetric, C> TypedMetric for Family<S, M, C> {
    const TYPE: MetricType = M::TYPE;
}

impl<S, M, C> EncodeMetric for Family<S, M, C>
where
    S: Clone + Eq + Hash + EncodeLabelSet,
    M: EncodeMetric + TypedMetric,
    C: MetricConstructor<M>,
{
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let series = self.series.read();
        for (labels, metric) in &series.known {
            metric.encode(encoder.encode_family(labels)?)?;
        }
        match &series.overflow {
            Some(metric) => metric.encode(encoder.encode_family(&OVERFLOW)?),
            None => Ok(()),
        }
    }

    fn is_empty(&self) -> bool {
        let series = self.series.read();
        series.known.is_empty() && series.overflow.is_none()
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Counter;

    type Labels = [(&'static str, String); 1];

    #[test]
    fn series_above_the_limit_are_counted_together() {
        let family: Family<Labels, Counter> = Family::default();
        for n in 0..SERIES_MAX + 50 {
            family.get_or_create(&[("path", n.to_string())]).inc();
        }
        family.get_or_create(&[("path", "0".into())]).inc();
        assert_eq!(family.series.read().known.len(), SERIES_MAX);
        assert_eq!(family.series.read().overflow.as_ref().unwrap().get(), 50);
        assert_eq!(family.get(&[("path", "0".into())]).unwrap().get(), 2);
        assert!(family.get(&[("path", SERIES_MAX.to_string())]).is_none());
    }
}
