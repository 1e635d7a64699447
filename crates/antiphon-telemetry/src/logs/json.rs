//! A log line as one JSON object, with the field names of OpenTelemetry's log data model.

use std::fmt::Write;

use super::fields::{Value, write_quoted};
use super::layer::{Line, Moment};

pub(super) fn line(line: &Line<'_>) -> String {
    let mut text = String::with_capacity(384);
    // Writing into a string does not fail.
    let _ = write!(
        text,
        "{{\"timestamp\":\"{}\",\"severity\":\"{}\"",
        Rfc3339(line.at),
        line.metadata.level()
    );
    member(&mut text, "message", &line.fields.message);
    member(&mut text, "service.name", line.service);
    member(&mut text, "target", line.metadata.target());
    if let Some(context) = line.context {
        let trace = context.trace();
        let _ = write!(
            text,
            ",\"trace_id\":\"{}\",\"span_id\":\"{}\"",
            trace.trace_id,
            trace.written_span_id()
        );
        member(&mut text, "correlation_id", &context.correlation_id());
    }
    if !line.fields.rest.is_empty() {
        text.push_str(",\"attributes\":{");
        for (n, (name, value)) in line.fields.rest.iter().enumerate() {
            if n > 0 {
                text.push(',');
            }
            write_quoted(&mut text, name);
            text.push(':');
            match value {
                Value::Plain(plain) => text.push_str(plain),
                Value::Text(words) => write_quoted(&mut text, words),
            }
        }
        text.push('}');
    }
    text.push_str("}\n");
    text
}

/// The line that tells of lines that were dropped.
pub(super) fn dropped(lines: u64) -> String {
    format!(
        "{{\"severity\":\"WARN\",\"message\":\"the log output is too slow, lines were dropped\",\
         \"attributes\":{{\"dropped\":{lines}}}}}\n"
    )
}

fn member(text: &mut String, name: &str, value: &str) {
    text.push_str(",\"");
    text.push_str(name);
    text.push_str("\":");
    write_quoted(text, value);
}

/// Writes a moment as RFC 3339 in UTC, to the nanosecond.
struct Rfc3339(Moment);

impl std::fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Moment { seconds, nanos } = self.0;
        let (year, month, day) = civil(seconds / 86_400);
        let of_day = seconds % 86_400;
        let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
    }
}

/// The date of a day, counted from 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `civil_from_days`, for days after the epoch).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::layer::Format;
    use crate::logs::layer::tests::{context, logged};

    #[test]
    fn dates_are_right_around_leap_days_and_centuries() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000005Z"),
            (951_782_399, "2000-02-28T23:59:59.000000005Z"),
            (951_782_400, "2000-02-29T00:00:00.000000005Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000000005Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000005Z"),
        ] {
            assert_eq!(Rfc3339(Moment { seconds, nanos: 5 }).to_string(), text);
        }
    }

    #[tokio::test]
    async fn a_line_carries_the_ids_of_its_context_and_all_fields() {
        let text = logged(Format::Json, || {
            let span = tracing::info_span!("place", order = 7, password = "hunter2");
            context().sync_scope(|| {
                span.in_scope(|| {
                    tracing::warn!(sku = "book", ratio = 0.5, quoted = "a \"b\"", "out of stock");
                });
            });
        })
        .await;
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["severity"], "WARN");
        assert_eq!(line["message"], "out of stock");
        assert_eq!(line["service.name"], "shop");
        assert_eq!(line["trace_id"], "00000000000000000000000000000abc");
        assert_eq!(line["span_id"], "0000000000000def");
        assert_eq!(line["correlation_id"], "order-1");
        let attributes = serde_json::json!({
            "sku": "book", "ratio": 0.5, "quoted": "a \"b\"", "order": 7, "password": "[redacted]"
        });
        assert_eq!(line["attributes"], attributes);
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[tokio::test]
    async fn a_line_outside_any_context_has_no_ids() {
        let text = logged(Format::Json, || tracing::info!("started")).await;
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["message"], "started");
        assert!(line.get("trace_id").is_none() && line.get("attributes").is_none());
    }
}
