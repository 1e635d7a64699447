//! The admin port over real sockets.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

use std::net::SocketAddr;
use std::time::Duration;

use antiphon_core::{Component, Health, ShutdownHandle, Status};
use antiphon_telemetry::Telemetry;
use antiphon_telemetry::admin::{Admin, AdminSettings, Page};
use antiphon_telemetry::metrics::{Counter, Histogram};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

struct Server {
    address: SocketAddr,
    health: Health,
    telemetry: Telemetry,
    handle: ShutdownHandle,
    running: JoinHandle<()>,
}

const ANYWHERE: fn() -> AdminSettings = || AdminSettings { listen: ([127, 0, 0, 1], 0).into() };

async fn start() -> Server {
    let (health, telemetry) = (Health::new(), Telemetry::new());
    let mut admin = Admin::new(telemetry.clone(), health.clone());
    admin.config(&json!([{ "setting": "server.listen", "value": "x", "origin": "default" }]));
    admin.page("/sagas", "Sagas <by> state", |request| async move {
        let state = request.parameter("state").map(str::to_owned);
        let text = String::from_utf8_lossy(&request.body).into_owned();
        let method = request.method.to_string();
        Page::json(&json!([method, request.rest, state, text]))
    });
    admin.page("/sagas/broken", "Fails", |_| async {
        Err(Status::unavailable("the store does not answer"))
    });
    let server = admin.bind(&ANYWHERE()).await.unwrap();
    let address = server.address();
    let (handle, shutdown) = ShutdownHandle::new();
    let running = tokio::spawn(async move { server.run(shutdown).await.unwrap() });
    Server { address, health, telemetry, handle, running }
}

/// Status line, head and body of an answer to these bytes.
async fn exchange(address: SocketAddr, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), body.to_owned())
}

async fn get(address: SocketAddr, path: &str, headers: &str) -> (u16, String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    exchange(address, &request).await
}

#[tokio::test]
async fn a_process_lives_while_it_is_not_ready_and_says_why() {
    let server = start().await;
    server.health.well("store");
    let (status, _, body) = get(server.address, "/readyz", "").await;
    assert_eq!(status, 200);
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["status"], "ready");
    server.health.unwell("broker", "connection refused");
    let (status, head, body) = get(server.address, "/readyz", "").await;
    assert_eq!(status, 503);
    assert!(head.contains("content-type: application/json"));
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap(),
        json!({ "status": "unready", "parts": [
            { "name": "broker", "status": "unwell", "reason": "connection refused" },
            { "name": "store", "status": "ok" },
        ]})
    );
    assert_eq!(get(server.address, "/livez", "").await.0, 200);
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let server = start().await;
    let calls = Counter::<u64>::default();
    let took = Histogram::new([1.0]);
    server.telemetry.register(|registry| {
        registry.register("calls", "Calls", calls.clone());
        registry.register("took_seconds", "Durations", took.clone());
    });
    calls.inc();
    took.observe(0.5);
    let (status, head, body) = get(server.address, "/metrics", "").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(body.contains("# TYPE calls_total counter\ncalls_total 1\n"), "{body}");
    let accept = "accept: application/openmetrics-text;version=1.0.0\r\n";
    let (_, head, body) = get(server.address, "/metrics", accept).await;
    assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
}

#[tokio::test]
async fn pages_answer_for_everything_below_them() {
    let server = start().await;
    let (status, _, body) = get(server.address, "/sagas/order-1/re%20try?state=parked", "").await;
    assert_eq!(status, 200);
    let asked: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(asked, json!(["GET", "order-1/re try", "parked", ""]));
    let post =
        "POST /sagas/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbody";
    let (_, _, body) = exchange(server.address, post).await;
    let asked: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(asked, json!(["POST", "", null, "body"]));
    let (status, head, body) = get(server.address, "/sagas/broken", "").await;
    assert_eq!(status, 503);
    assert!(head.contains("application/problem+json"), "{head}");
    assert!(body.contains("the store does not answer"), "{body}");
    let (_, _, body) = get(server.address, "/config", "").await;
    assert!(body.contains("server.listen"), "{body}");
}

#[tokio::test]
async fn the_index_lists_pages_and_other_paths_are_refused() {
    let server = start().await;
    let (status, head, body) = get(server.address, "/", "").await;
    assert_eq!(status, 200);
    assert!(head.contains("text/html"));
    assert!(body.contains("<a href=\"/sagas\">/sagas</a></dt><dd>Sagas &lt;by&gt; state</dd>"));
    let (status, _, body) = get(server.address, "/sagasx", "").await;
    assert_eq!(status, 404);
    assert!(body.contains("there is no page /sagasx"), "{body}");
    let head = "HEAD /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let (status, _, body) = exchange(server.address, head).await;
    assert_eq!((status, body.as_str()), (200, ""));
}

#[tokio::test]
async fn bodies_that_are_too_long_are_refused() {
    let server = start().await;
    let body = "x".repeat(1_100_000);
    let request = format!(
        "POST /sagas HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // The server may answer and close before it has taken everything.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
}

#[tokio::test]
async fn a_port_in_use_is_told_with_what_to_do() {
    let server = start().await;
    let admin = Admin::new(Telemetry::new(), Health::new());
    let error = admin.bind(&AdminSettings { listen: server.address }).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot listen on {}: the port is in use by another process; choose another with \
             `admin.listen`",
            server.address
        )
    );
}

#[tokio::test]
async fn the_port_ends_when_it_is_told_to_drain() {
    let server = start().await;
    // A connection that never says anything must not hold the end up.
    let _idle = TcpStream::connect(server.address).await.unwrap();
    server.handle.drain(Duration::from_secs(5));
    tokio::time::timeout(Duration::from_secs(2), server.running).await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}
