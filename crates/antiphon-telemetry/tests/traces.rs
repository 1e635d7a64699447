//! Spans on their way to a collector, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

use std::time::Duration;

use antiphon_config::HumanDuration;
use antiphon_core::{Code, Context, SpanId, Status, TraceContext};
use antiphon_telemetry::metrics::Exposition;
use antiphon_telemetry::{Service, SpanKind, Telemetry, TelemetrySettings, TraceSettings};
use antiphon_testing::otlp::Recorder;
use http::StatusCode;

const SOON: Duration = Duration::from_secs(10);

fn to(endpoint: String) -> TraceSettings {
    let interval = HumanDuration::from_millis(10);
    TraceSettings { endpoint: Some(endpoint), interval, ..TraceSettings::default() }
}

fn start(traces: TraceSettings) -> Telemetry {
    let settings = TelemetrySettings { traces, ..TelemetrySettings::default() };
    Telemetry::without_logs(&Service::new("orders", "1.0.0"), &settings).unwrap()
}

fn count(telemetry: &Telemetry, name: &str) -> u64 {
    let text = telemetry.metrics(Exposition::Prometheus);
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap().parse().unwrap()
}

#[tokio::test]
async fn nested_spans_arrive_as_one_tree_with_the_ids_of_their_contexts() {
    let recorder = Recorder::start().await.unwrap();
    let telemetry = start(to(recorder.endpoint()));
    let other = TraceContext::root().child(SpanId(77));
    let (call, mut server) = telemetry.span(SpanKind::Server, "PlaceOrder", &Context::root(), &[]);
    let (publish, producer) = telemetry.span(SpanKind::Producer, "send orders", &call, &[]);
    let (handle, mut consumer) = telemetry.span(
        SpanKind::Consumer,
        "process orders",
        &publish,
        std::slice::from_ref(&other),
    );
    assert!(server.is_recording());
    server.set("rpc.method", "shop.orders.v1.OrderService/PlaceOrder");
    server.set("rpc.method", "the last one wins");
    server.fail(&Status::not_found("no such customer"));
    consumer.fail(&Status::new(Code::Internal, "no stock"));
    drop((consumer, producer, server));
    telemetry.flush(SOON).await;
    let tree = recorder.trace(&call.trace().trace_id.to_string()).unwrap();
    let names: Vec<_> = tree.walk().iter().map(|(depth, span)| (*depth, &*span.name)).collect();
    assert_eq!(names, [(0, "PlaceOrder"), (1, "send orders"), (2, "process orders")]);
    let spans = tree.walk();
    let (server, consumer) = (spans[0].1, spans[2].1);
    assert_eq!(server.span_id, call.trace().span_id.to_string());
    assert_eq!(consumer.span_id, handle.trace().span_id.to_string());
    assert_eq!(server.attributes["rpc.method"], "the last one wins");
    assert_eq!(server.service, "orders");
    assert_eq!(server.error, None, "the caller's mistake is no failure of the server");
    assert_eq!(consumer.error.as_deref(), Some("no stock"));
    assert_eq!(consumer.attributes["error.type"], "INTERNAL");
    let link = (other.trace_id.to_string(), other.span_id.to_string());
    assert_eq!(consumer.links, [link]);
    assert_eq!(count(&telemetry, "antiphon_spans_exported_total"), 3);
}

#[tokio::test]
async fn spans_are_sent_without_being_asked() {
    let recorder = Recorder::start().await.unwrap();
    let telemetry = start(to(recorder.endpoint()));
    for _ in 0..1_000 {
        drop(telemetry.span(SpanKind::Internal, "work", &Context::root(), &[]));
    }
    recorder.wait_for(SOON, |spans| spans.len() == 1_000).await.unwrap();
}

#[tokio::test]
async fn the_caller_decides_and_roots_follow_the_ratio() {
    let recorder = Recorder::start().await.unwrap();
    let telemetry = start(TraceSettings { sample_ratio: 0.0, ..to(recorder.endpoint()) });
    let root = Context::root();
    let (context, span) = telemetry.span(SpanKind::Server, "unsampled", &root, &[]);
    assert!(!span.is_recording());
    assert_eq!(context.trace(), root.trace(), "nothing is recorded, so nothing changes");
    let sampled = TraceContext { sampled: true, ..root.trace().child(SpanId(5)) };
    let caller = Context::root().with_trace(sampled);
    let (_, span) = telemetry.span(SpanKind::Server, "sampled by the caller", &caller, &[]);
    assert!(span.is_recording());
    drop(span);
    let always = start(to(recorder.endpoint()));
    let refused = TraceContext::root().child(SpanId(5));
    let caller = Context::root().with_trace(refused);
    assert!(!always.span(SpanKind::Server, "refused", &caller, &[]).1.is_recording());
    telemetry.flush(SOON).await;
    always.flush(SOON).await;
    let names: Vec<_> = recorder.spans().into_iter().map(|span| span.name).collect();
    assert_eq!(names, ["sampled by the caller"]);
}

#[tokio::test]
async fn a_collector_that_is_away_for_a_moment_loses_nothing() {
    let recorder = Recorder::start().await.unwrap();
    recorder.answer_with(StatusCode::SERVICE_UNAVAILABLE);
    let telemetry = start(to(recorder.endpoint()));
    drop(telemetry.span(SpanKind::Internal, "early", &Context::root(), &[]));
    tokio::time::sleep(Duration::from_millis(300)).await;
    recorder.answer_with(StatusCode::OK);
    recorder.wait_for(SOON, |spans| spans.len() == 1).await.unwrap();
    assert_eq!(count(&telemetry, "antiphon_spans_dropped_total"), 0);
}

#[tokio::test]
async fn what_the_collector_refuses_is_counted() {
    let recorder = Recorder::start().await.unwrap();
    recorder.answer_with(StatusCode::BAD_REQUEST);
    let telemetry = start(to(recorder.endpoint()));
    drop(telemetry.span(SpanKind::Internal, "refused", &Context::root(), &[]));
    telemetry.flush(SOON).await;
    assert_eq!(count(&telemetry, "antiphon_spans_dropped_total"), 1);
    assert!(recorder.spans().is_empty());
}

#[tokio::test]
async fn a_flush_ends_in_time_when_there_is_no_collector() {
    // A port that was free a moment ago, and that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let telemetry = start(to(format!("http://{free}")));
    drop(telemetry.span(SpanKind::Internal, "lost", &Context::root(), &[]));
    let begun = tokio::time::Instant::now();
    telemetry.flush(Duration::from_millis(500)).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(count(&telemetry, "antiphon_spans_dropped_total"), 1);
}

#[tokio::test]
async fn a_full_queue_drops_spans_and_counts_them() {
    // Takes connections and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let telemetry = start(TraceSettings { queue: 4, batch: 1, ..to(endpoint) });
    for _ in 0..1_000 {
        drop(telemetry.span(SpanKind::Internal, "too many", &Context::root(), &[]));
    }
    let dropped = count(&telemetry, "antiphon_spans_dropped_total");
    assert!((900..1_000).contains(&dropped), "{dropped}");
}
