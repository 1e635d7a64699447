//! How metrics are written down: OpenMetrics text, or Prometheus text for those who ask for it.
//!
//! The library writes OpenMetrics and cannot be given exemplars from outside, so the writer it writes
//! into adds them: a histogram lays its exemplars out before it encodes itself, one per line that
//! follows, and the writer puts each at the end of its line.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use super::histogram::Exemplar;

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// OpenMetrics 1.0: the one with exemplars.
    OpenMetrics,
    /// Prometheus 0.0.4: what everything reads.
    Prometheus,
}

impl Exposition {
    /// The format for an `Accept` header: OpenMetrics only for those who name it.
    #[must_use]
    pub fn negotiate(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// The `Content-Type` of the format.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    pub(crate) fn write(self, registry: &Registry) -> String {
        let mut writer = Writer { text: String::with_capacity(16 * 1024), exemplars: self };
        // Writing into a string does not fail, and no instrument of ours refuses to be encoded.
        let _ = text::encode(&mut writer, registry);
        match self {
            Self::OpenMetrics => writer.text,
            Self::Prometheus => to_prometheus(&writer.text),
        }
    }
}

thread_local! {
    /// What to add to the lines that are about to be written.
    static LINES: RefCell<VecDeque<Option<Exemplar>>> = const { RefCell::new(VecDeque::new()) };
}

/// Encodes a histogram whose buckets have these exemplars.
pub(super) fn with_exemplars(
    exemplars: impl Iterator<Item = Option<Exemplar>>,
    encode: impl FnOnce() -> fmt::Result,
) -> fmt::Result {
    // The sum and the count stand before the buckets, one line each.
    LINES.with_borrow_mut(|lines| lines.extend([None, None].into_iter().chain(exemplars)));
    let result = encode();
    LINES.with_borrow_mut(VecDeque::clear);
    result
}

struct Writer {
    text: String,
    exemplars: Exposition,
}

impl fmt::Write for Writer {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        if piece == "\n"
            && let Some(exemplar) = LINES.with_borrow_mut(VecDeque::pop_front).flatten()
            && self.exemplars == Exposition::OpenMetrics
        {
            let Exemplar { trace_id, span_id, value, at } = exemplar;
            let (seconds, millis) = (at.as_millis() / 1_000, at.as_millis() % 1_000);
            fmt::write(
                &mut self.text,
                format_args!(
                    " # {{trace_id=\"{trace_id}\",span_id=\"{span_id}\"}} {value} \
                     {seconds}.{millis:03}"
                ),
            )?;
        }
        self.text.push_str(piece);
        Ok(())
    }
}

/// Rewrites OpenMetrics as Prometheus text: counters carry `_total` in their family name, and there
/// is no unit, no end mark and no type `info` or `unknown`.
fn to_prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else {
                continue;
            };
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some((_, words)) = help.take() {
                text.push_str(&format!("# HELP {name}{suffix} {words}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Counter, Family, Histogram};
    use antiphon_core::{Context, SpanId, TraceContext};
    use prometheus_client::metrics::info::Info;

    fn registry() -> Registry {
        let mut registry = Registry::default();
        let calls = Counter::<u64>::default();
        registry.register("calls", "Calls", calls.clone());
        calls.inc_by(3);
        let durations: Family<[(&str, &str); 1], Histogram> =
            Family::new_with_constructor(|| Histogram::new([0.1, 1.0]));
        registry.register("took_seconds", "How long calls took", durations.clone());
        registry.register("build", "Build", Info::new([("version", "1")]));
        let one = durations.get_or_create(&[("method", "a")]);
        one.observe(0.05);
        let trace = TraceContext { sampled: true, ..TraceContext::root().child(SpanId(7)) };
        one.observe_in(0.5, &Context::root().with_trace(trace));
        registry
    }

    #[test]
    fn exemplars_stand_at_the_bucket_they_belong_to() {
        let text = Exposition::OpenMetrics.write(&registry());
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
        let with = line("took_seconds_bucket{le=\"1.0\",method=\"a\"}");
        assert!(with.contains("2 # {trace_id=\""), "{with}");
        assert!(with.contains("span_id=\"0000000000000007\"} 0.5 "), "{with}");
        assert_eq!(text.matches("trace_id").count(), 1, "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn prometheus_text_has_the_suffix_in_the_family_name_and_no_exemplars() {
        let text = Exposition::Prometheus.write(&registry());
        assert!(text.starts_with("# HELP calls_total Calls.\n# TYPE calls_total counter\n"));
        assert!(text.contains("\ncalls_total 3\n"));
        assert!(text.contains("# TYPE took_seconds histogram\n"));
        assert!(text.contains("# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n"));
        assert!(!text.contains("trace_id") && !text.contains("# EOF"));
    }

    #[test]
    fn open_metrics_is_for_those_who_name_it() {
        let scraper = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;q=0.5";
        assert_eq!(Exposition::negotiate(scraper), Exposition::OpenMetrics);
        assert_eq!(Exposition::negotiate("*/*"), Exposition::Prometheus);
        assert_eq!(Exposition::negotiate(""), Exposition::Prometheus);
    }
}
