//! Instruments, by the names of the library that implements them, and three of our own: a histogram
//! that does not lock, a family that cannot grow without bound, and exemplars.

mod family;
mod histogram;
mod process;
mod runtime;
mod text;

pub use prometheus_client::collector::Collector;
pub use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric,
};
pub use prometheus_client::metrics::MetricType;
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::gauge::ConstGauge;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::registry::Registry;

pub use family::{Family, SERIES_MAX};
pub use histogram::Histogram;
pub use text::Exposition;

pub(crate) use process::ProcessCollector;
pub(crate) use runtime::Runtimes;

/// Bounds of durations, in seconds: those of OpenTelemetry's semantic conventions, and three below
/// them for services that are near.
pub const SECONDS: [f64; 17] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
    7.5, 10.0,
];

/// Bounds of sizes, in bytes: powers of four from 64 B to 16 MiB.
pub const BYTES: [f64; 10] = [
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
];
