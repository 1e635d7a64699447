//! One order is one trace, from the call of its customer to the last notification, and every log line
//! about it carries its ids.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use antiphon_testing::otlp::{RecordedSpan, Recorder, Tree};
use serde_json::{Value, json};

use crate::harness::{Shop, audit, request};

/// The trace and the span of a customer who traces as well.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// Everybody who has something to do with an order that is confirmed.
const GROUPS: [&str; 6] = [
    "inventory.commands",
    "notifications.all",
    "payments.captures",
    "payments.commands",
    "points.orders",
    "shipping.orders",
];

#[tokio::test]
async fn an_order_is_one_tree_and_its_log_lines_carry_its_ids() {
    let data = tempfile::tempdir().unwrap();
    let recorder = Recorder::start().await.unwrap();
    let config = settings(data.path(), &recorder);
    let shop = Shop::start(data.path(), "shop", &["--config", &config]).await;

    let traceparent = format!("00-{TRACE}-{SPAN}-01");
    let followed = order(&shop, &[("traceparent", &traceparent)]).await;
    let own = order(&shop, &[]).await;
    // Until nothing is in flight any more.
    audit(data.path(), &[]).await;
    // The last spans are sent at the end.
    let log = shop.log.clone();
    shop.close().await;

    let mut spans = of_trace(&recorder, TRACE);
    // The customer's own span is not exported to our collector.
    spans.push(customers_span());
    let tree = Tree::new(spans).unwrap_or_else(|why| panic!("{why:?}"));
    println!("{tree}");
    let groups: BTreeSet<String> = consumers(&tree);
    for group in GROUPS {
        assert!(groups.contains(group), "{group} is missing in {groups:?}:\n{tree}");
    }

    let lines = log_lines(&log);
    assert_ids(&lines, &followed, TRACE);
    let trace = of_order(&lines, &own).next().unwrap()["trace_id"].as_str().unwrap().to_owned();
    assert_ids(&lines, &own, &trace);
    let tree = recorder.trace(&trace).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!(tree.root().kind, "Server", "{tree}");
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!text.contains("tok_ok"), "the log has a card in it");
}

fn settings(data: &Path, recorder: &Recorder) -> String {
    let config = data.with_extension("trace.toml");
    let endpoint = recorder.endpoint();
    let text = format!(
        "[telemetry.log]\nformat = \"json\"\nfilter = \"debug\"\n\
         [telemetry.traces]\nendpoint = \"{endpoint}\"\ninterval = \"100ms\"\n"
    );
    std::fs::write(&config, text).unwrap();
    config.to_str().unwrap().to_owned()
}

/// Places an order; returns its id.
async fn order(shop: &Shop, headers: &[(&str, &str)]) -> String {
    let body = json!({
        "customerId": "tracer",
        "card": "tok_ok",
        "lines": [{"sku": "book-rust", "quantity": 1}],
    });
    let headers = [&[("content-type", "application/json")][..], headers].concat();
    let placed = request(&shop.api, "POST", "/v1/orders", &headers, &body.to_string()).await;
    assert_eq!(placed.status, 201, "{}", placed.json());
    placed.json()["id"].as_str().unwrap().to_owned()
}

fn of_trace(recorder: &Recorder, trace: &str) -> Vec<RecordedSpan> {
    recorder.spans().into_iter().filter(|span| span.trace_id == trace).collect()
}

/// What the customer would have exported.
fn customers_span() -> RecordedSpan {
    RecordedSpan {
        trace_id: TRACE.to_owned(),
        span_id: SPAN.to_owned(),
        parent_id: None,
        name: "the customer".to_owned(),
        kind: "Client".to_owned(),
        service: "customer".to_owned(),
        attributes: BTreeMap::new(),
        links: Vec::new(),
        error: None,
        time: (0, 0),
    }
}

/// The groups that handled a message of the trace.
fn consumers(tree: &Tree) -> BTreeSet<String> {
    let spans = tree.walk().into_iter();
    spans
        .filter_map(|(_, span)| span.attributes.get("messaging.consumer.group.name"))
        .cloned()
        .collect()
}

fn log_lines(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}")))
        .collect()
}

/// The lines that mention an order.
fn of_order<'a>(lines: &'a [Value], order: &str) -> impl Iterator<Item = &'a Value> {
    lines.iter().filter(move |line| line.to_string().contains(order))
}

fn assert_ids(lines: &[Value], order: &str, trace: &str) {
    let mut about = 0;
    for line in of_order(lines, order) {
        assert_eq!(line["trace_id"], trace, "{line}");
        // Without one of the caller's, the trace is what the work belongs to.
        assert_eq!(line["correlation_id"], trace, "{line}");
        about += 1;
    }
    assert!(about > 0, "no line is about {order}");
}
