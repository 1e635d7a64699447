//! How busy the asynchronous runtimes are.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::runtime::{Handle, RuntimeMetrics};

/// Reads one figure of a runtime.
type Read = fn(&RuntimeMetrics) -> usize;

/// The runtimes that are watched, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runtimes(Arc<Mutex<Vec<(String, Handle)>>>);

impl Runtimes {
    /// Watches the runtime of the calling thread; a second one of the same name takes its place.
    pub(crate) fn watch_current(&self, name: &str) {
        if let Ok(handle) = Handle::try_current() {
            let mut watched = self.0.lock();
            watched.retain(|(other, _)| other != name);
            watched.push((name.to_owned(), handle));
        }
    }
}

impl Collector for Runtimes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let watched = self.0.lock();
        if watched.is_empty() {
            return Ok(());
        }
        let gauges: [(&str, &str, Read); 3] = [
            ("tokio_workers", "Worker threads of the runtime.", RuntimeMetrics::num_workers),
            ("tokio_alive_tasks", "Tasks that are not finished.", RuntimeMetrics::num_alive_tasks),
            (
                "tokio_global_queue_depth",
                "Tasks that wait for any worker.",
                RuntimeMetrics::global_queue_depth,
            ),
        ];
        for (name, help, read) in gauges {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (runtime, handle) in watched.iter() {
                let value = read(&handle.metrics()) as f64;
                let labels = [("runtime", runtime.as_str())];
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        let help = "Time that the runtime's workers were not waiting for work.";
        let mut metric =
            encoder.encode_descriptor("tokio_busy_seconds", help, None, MetricType::Counter)?;
        for (runtime, handle) in watched.iter() {
            let labels = [("runtime", runtime.as_str())];
            ConstCounter::new(busy_seconds(&handle.metrics()))
                .encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn busy_seconds(metrics: &RuntimeMetrics) -> f64 {
    (0..metrics.num_workers()).map(|n| metrics.worker_total_busy_duration(n).as_secs_f64()).sum()
}
