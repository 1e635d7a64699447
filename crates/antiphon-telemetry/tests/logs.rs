//! Log lines of a whole process. The process is this test program again, told by a variable to log.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]
#![expect(
    clippy::disallowed_methods,
    reason = "the variable is between two copies of this program"
)]

use std::process::Command;
use std::time::Duration;

use antiphon_core::{Context, SpanId, TraceContext};
use antiphon_telemetry::metrics::Exposition;
use antiphon_telemetry::{
    LogFormat, LogOutput, LogSettings, Service, StartError, Telemetry, TelemetrySettings,
};
use serde_json::Value;

const CHILD: &str = "ANTIPHON_TEST_CHILD";

fn settings(log: LogSettings) -> TelemetrySettings {
    TelemetrySettings { log, ..TelemetrySettings::default() }
}

#[tokio::test]
async fn every_line_of_a_process_is_json_with_ids_and_none_is_lost_at_its_end() {
    if std::env::var(CHILD).is_ok() {
        return log_a_thousand_lines().await;
    }
    let name = "every_line_of_a_process_is_json_with_ids_and_none_is_lost_at_its_end";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(output.status.success());
    let errors = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<Value> = errors
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 1_001, "{errors}");
    for (n, line) in lines[..1_000].iter().enumerate() {
        assert_eq!(line["attributes"]["n"], n);
        assert_eq!(line["service.name"], "orders");
        assert_eq!(line["span_id"], "0000000000000007");
        assert_eq!(line["correlation_id"], "order-1");
        assert_eq!(line["trace_id"], lines[0]["trace_id"]);
    }
    assert_eq!(lines[1_000]["message"], "quiet");
    assert_eq!(lines[1_000]["severity"], "WARN");
}

async fn log_a_thousand_lines() {
    let log = LogSettings {
        format: LogFormat::Json,
        output: LogOutput::Stderr,
        filter: "info,noisy=warn".to_owned(),
        ..LogSettings::default()
    };
    let service = Service::new("orders", "1.0.0");
    let telemetry = Telemetry::start(&service, &settings(log)).unwrap();
    let trace = TraceContext::root().child(SpanId(7));
    let context = Context::root().with_trace(trace).with_correlation_id("order-1");
    let work = async {
        for n in 0..1_000 {
            tracing::info!(n, "working");
            tracing::debug!("never written");
            tokio::task::yield_now().await;
        }
    };
    context.scope(work).await;
    tracing::info!(target: "noisy", "never written");
    tracing::warn!(target: "noisy", "quiet");
    let again = Telemetry::start(&service, &settings(LogSettings::default())).unwrap_err();
    assert!(matches!(again, StartError::Logs(_)), "{again}");
    telemetry.flush(Duration::from_secs(5)).await;
    let metrics = telemetry.metrics(Exposition::Prometheus);
    assert!(metrics.contains("antiphon_log_lines_total 1001\n"), "{metrics}");
    assert!(metrics.contains("target_info{service_name=\"orders\""), "{metrics}");
    assert!(metrics.contains("process_resident_memory_bytes "), "{metrics}");
}

#[test]
fn settings_that_cannot_work_are_refused_with_their_name() {
    let refused = |log: LogSettings| {
        let service = Service::new("orders", "1.0.0");
        Telemetry::start(&service, &settings(log)).unwrap_err().to_string()
    };
    let filter = LogSettings { filter: "orders=loud".to_owned(), ..LogSettings::default() };
    let problem = refused(filter);
    assert!(problem.starts_with("telemetry.log: `filter` is \"orders=loud\": "), "{problem}");
    let queue = LogSettings { queue: 0, ..LogSettings::default() };
    assert_eq!(refused(queue), "telemetry.log: `queue` must be at least 1");
}
