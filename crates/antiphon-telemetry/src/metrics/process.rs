//! What the process uses, by the names that every Prometheus dashboard knows.
//!
//! Read from `/proc` when somebody asks; elsewhere only the start time is known.

use std::fmt;

use antiphon_core::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// How often per second the kernel counts CPU time, on every Linux architecture that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// Memory, CPU time, files and threads of this process.
#[derive(Debug)]
pub(crate) struct ProcessCollector {
    pub(crate) started: Timestamp,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let started = self.started.as_micros() as f64 / 1e6;
        let mut gauge = |name, help, value: f64| {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)
        };
        gauge("process_start_time_seconds", "When the process started, since the epoch.", started)?;
        let Some(usage) = Usage::read() else {
            return Ok(());
        };
        gauge("process_resident_memory_bytes", "Memory in use.", usage.resident_bytes)?;
        gauge("process_open_fds", "Open file descriptors.", usage.open_fds)?;
        gauge("process_max_fds", "Most file descriptors that may be open.", usage.max_fds)?;
        gauge("process_threads", "Threads.", usage.threads)?;
        let help = "CPU time used.";
        let metric =
            encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
        ConstCounter::new(usage.cpu_seconds).encode(metric)
    }
}

struct Usage {
    resident_bytes: f64,
    open_fds: f64,
    max_fds: f64,
    threads: f64,
    cpu_seconds: f64,
}

impl Usage {
    fn read() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
        Some(Self {
            resident_bytes: 1_024.0 * number_after(&status, "VmRSS:")?,
            threads: number_after(&status, "Threads:")?,
            max_fds: number_after(&limits, "Max open files").unwrap_or(f64::INFINITY),
            open_fds: std::fs::read_dir("/proc/self/fd").ok()?.count() as f64,
            cpu_seconds: cpu_ticks(&stat)? / TICKS_PER_SECOND,
        })
    }
}

fn number_after(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// User and system time in `/proc/self/stat`. Fields are counted behind the name of the program,
/// which stands in parentheses and may contain anything.
fn cpu_ticks(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_any_program_name() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 3 0 100 1 1";
        assert_eq!(cpu_ticks(stat), Some(200.0));
        assert_eq!(cpu_ticks("rubbish"), None);
    }

    #[test]
    fn limits_and_status_are_read_by_name() {
        let text = "VmPeak:  5 kB\nVmRSS:\t  1234 kB\nMax open files            1024 4096 files\n";
        assert_eq!(number_after(text, "VmRSS:"), Some(1_234.0));
        assert_eq!(number_after(text, "Max open files"), Some(1_024.0));
        assert_eq!(number_after(text, "Threads:"), None);
    }
}
