//! One order is one trace, from the call of its customer to the last notification, and every log line
//! about it carries its ids.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use antiphon_testing::otlp::{RecordedSpan, Recorder, Tree};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Shop, audit, request};

/// The trace and the span of a customer who traces as well.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// Everybody who has something to do with an order that is confirmed.
const GROUPS: [&str; 7] = [
    "inventory.commands",
    "notifications.all",
    "orders.saga-replies",
    "payments.captures",
    "payments.commands",
    "points.orders",
    "shipping.orders",
];

#[tokio::test]
async fn an_order_is_one_tree_and_its_log_lines_carry_its_ids() {
    let data = tempfile::tempdir().unwrap();
    let recorder = Recorder::start().await.unwrap();
    let config = settings(data.path(), &recorder, "");
    let shop = Shop::start(data.path(), "shop", &["--config", &config]).await;

    let traceparent = format!("00-{TRACE}-{SPAN}-01");
    let followed = order(&shop, "tok_ok", &[("traceparent", &traceparent)]).await;
    // Cards that are tried again or declined, and many orders at once: what is handled in one
    // transaction stays in its own trace.
    let cards = ["tok_flaky", "tok_declined", "tok_ok", "tok_ok"].repeat(8);
    let others = join_all(cards.iter().map(|card| order(&shop, card, &[]))).await;
    // Until nothing is in flight any more.
    audit(data.path(), &[]).await;
    let log = shop.log.clone();
    // The last spans are sent at the end.
    shop.close().await;

    assert_followed(&recorder);
    let lines = log_lines(&log);
    assert_ids(&lines, &followed, TRACE);
    for (card, id) in cards.iter().zip(&others) {
        let trace = of_order(&lines, id).next().unwrap()["trace_id"].as_str().unwrap();
        assert_ids(&lines, id, trace);
        let tree = recorder.trace(trace).unwrap_or_else(|why| panic!("{card}: {why:?}"));
        assert_eq!(tree.root().kind, "Server", "{tree}");
        if *card != "tok_declined" {
            assert_everybody(&tree);
        }
    }
    for card in cards {
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(!text.contains(card), "the log has the card {card} in it");
    }
}

#[tokio::test]
async fn an_order_is_one_tree_across_six_processes() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let recorder = Recorder::start().await.unwrap();
    let config = settings(&data, &recorder, "");
    let inventory =
        Shop::start(&data, "inventory", &["--only", "inventory", "--config", &config]).await;
    let target = format!(
        "[clients.\"shop.inventory.v1.InventoryService\"]\ntarget = \"static:{}\"\n",
        inventory.api
    );
    let with_target = settings(&data, &recorder, &target);
    let orders =
        Shop::start(&data, "orders", &["--only", "orders", "--config", &with_target]).await;
    let mut shops = vec![inventory];
    for name in ["payments", "points", "shipping", "notifications"] {
        shops.push(Shop::start(&data, name, &["--only", name, "--config", &config]).await);
    }
    let traceparent = format!("00-{TRACE}-{SPAN}-01");
    let followed = order(&orders, "tok_ok", &[("traceparent", &traceparent)]).await;
    audit(&data, &[]).await;
    shops.push(orders);
    let mut logs = Vec::new();
    for shop in shops {
        logs.push(shop.log.clone());
        shop.close().await;
    }
    assert_followed(&recorder);
    for log in logs {
        assert_ids(&log_lines(&log), &followed, TRACE);
    }
}

/// The trace of the customer is one tree, with everybody in it.
fn assert_followed(recorder: &Recorder) {
    let mut spans = of_trace(recorder, TRACE);
    // The customer's own span is not exported to our collector.
    spans.push(customers_span());
    let tree = Tree::new(spans).unwrap_or_else(|why| panic!("{why:?}"));
    assert_everybody(&tree);
}

fn assert_everybody(tree: &Tree) {
    let groups = consumers(tree);
    for group in GROUPS {
        assert!(groups.contains(group), "{group} is missing in {groups:?}:\n{tree}");
    }
    let has = |kind: &str| tree.walk().iter().any(|(_, span)| span.kind == kind);
    assert!(has("Server") && has("Producer"), "{tree}");
}

/// A file with settings that record everything.
fn settings(data: &Path, recorder: &Recorder, more: &str) -> String {
    let config = data.with_extension(format!("{}.toml", more.len()));
    let endpoint = recorder.endpoint();
    let text = format!(
        "[telemetry.log]\nformat = \"json\"\nfilter = \"debug\"\n\
         [telemetry.traces]\nendpoint = \"{endpoint}\"\ninterval = \"100ms\"\n{more}"
    );
    std::fs::write(&config, text).unwrap();
    config.to_str().unwrap().to_owned()
}

/// Places an order; returns its id.
async fn order(shop: &Shop, card: &str, headers: &[(&str, &str)]) -> String {
    let body = json!({
        "customerId": "tracer",
        "card": card,
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
