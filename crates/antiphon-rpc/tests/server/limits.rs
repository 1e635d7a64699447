//! Limits, health, reflection and metrics.

use std::sync::Arc;
use std::time::Duration;

use antiphon_resilience::LimitSettings;
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::support::client::{Http2, frame, grpc_request};
use crate::support::echo::Echo;
use crate::support::{
    ServerSettings, in_progress, settings, soon, start, start_service, start_with,
};

#[tokio::test]
async fn calls_above_the_limit_are_unavailable_at_once_with_a_hint_and_health_still_answers() {
    let concurrency = LimitSettings { initial: 2, min: 2, max: 2, ..LimitSettings::default() };
    let echo = Echo::default();
    let release = Arc::clone(&echo.0.release);
    let server = start_service(ServerSettings { concurrency, ..settings() }, Arc::new(echo)).await;
    let client = Http2::connect(server.address).await;
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.grpc("Wait", b"release").await })
        })
        .collect();
    in_progress(&server, 2).await;
    let answer = client.grpc("Wait", b"0").await;
    assert_eq!((answer.status, answer.code()), (200, "14"));
    let pushback: u64 = answer.headers["grpc-retry-pushback-ms"].to_str().unwrap().parse().unwrap();
    assert!((50..150).contains(&pushback), "{pushback}");
    // Another method has a limit of its own, and health has none.
    assert_eq!(client.grpc("Echo", b"").await.code(), "0");
    assert_eq!(check(&client).await, [Bytes::from_static(&[8, 1])]);
    release.add_permits(2);
    for waiting in waiting {
        assert_eq!(soon(waiting).await.unwrap().code(), "0");
    }
    assert_eq!(client.grpc("Wait", b"0").await.code(), "0");
    let metrics = server.metrics();
    assert!(metrics.contains("rpc_server_shed_total{reason=\"concurrency\"} 1"), "{metrics}");
}

async fn check(client: &Http2) -> Vec<Bytes> {
    let headers = [("content-type", "application/grpc"), ("te", "trailers")];
    let request = Http2::request("/grpc.health.v1.Health/Check", &headers);
    client.send(request, frame(b"")).await.messages()
}

#[tokio::test]
async fn the_process_has_a_limit_of_its_own() {
    let server = start_with(ServerSettings { calls_max: 1, ..settings() }).await;
    let client = Http2::connect(server.address).await;
    let stream = {
        let client = client.clone();
        tokio::spawn(async move { client.grpc("Forever", b"").await })
    };
    in_progress(&server, 1).await;
    assert_eq!(client.grpc("Echo", b"").await.code(), "14");
    assert_eq!(check(&client).await.len(), 1);
    stream.abort();
}

#[tokio::test]
async fn watched_health_takes_no_place_of_a_call() {
    let server = start_with(ServerSettings { calls_max: 1, ..settings() }).await;
    let client = Http2::connect(server.address).await;
    let headers = [("content-type", "application/grpc"), ("te", "trailers")];
    let watches: Vec<_> = (0..3)
        .map(|_| {
            let client = client.clone();
            let request = Http2::request("/grpc.health.v1.Health/Watch", &headers);
            tokio::spawn(async move { client.send(request, frame(b"")).await })
        })
        .collect();
    in_progress(&server, 3).await;
    assert_eq!(client.grpc("Echo", b"").await.code(), "0");
    watches.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn callers_that_do_not_send_what_they_announced_teach_the_limit_nothing() {
    let window = Duration::from_millis(20);
    let concurrency = LimitSettings { initial: 50, window, ..LimitSettings::default() };
    let server = start_with(ServerSettings { concurrency, ..settings() }).await;
    let client = Http2::connect(server.address).await;
    let limit = || {
        let metrics = server.metrics();
        let line = metrics.lines().find(|line| {
            line.starts_with("rpc_server_concurrency_limit{") && line.contains("Echo/Echo")
        });
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).expect("a limit")
    };
    // On the lean path, and on the general one.
    for encoding in ["identity", "gzip"] {
        for _ in 0..20 {
            let silent =
                grpc_request("Echo", &[("grpc-timeout", "20m"), ("grpc-encoding", encoding)]);
            let mut send = client.0.clone().ready().await.unwrap();
            let (answer, _nothing_comes) = send.send_request(silent, false).unwrap();
            for _ in 0..30 {
                assert_eq!(client.grpc("Echo", b"").await.code(), "0");
            }
            assert_eq!(soon(answer).await.unwrap().headers()["grpc-status"], "4");
        }
        assert!(limit() >= 50.0, "{encoding}: {}", limit());
    }
}

#[tokio::test]
async fn connections_above_the_limit_are_closed() {
    let server = start_with(ServerSettings { connections_per_address_max: 1, ..settings() }).await;
    let first = Http2::connect(server.address).await;
    assert_eq!(first.grpc("Echo", b"").await.code(), "0");
    let mut second = TcpStream::connect(server.address).await.unwrap();
    let read = soon(second.read(&mut [0; 8])).await;
    assert!(matches!(read, Ok(0) | Err(_)));
    assert_eq!(first.grpc("Echo", b"").await.code(), "0");
}

#[tokio::test]
async fn idle_connections_are_closed() {
    let idle_timeout = Duration::from_millis(100);
    let server = start_with(ServerSettings { idle_timeout, ..settings() }).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let client = Http2(send);
    assert_eq!(client.grpc("Echo", b"").await.code(), "0");
    soon(connection).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_with_nothing_to_say_keeps_its_connection() {
    let server = start_with(ServerSettings {
        idle_timeout: Duration::from_millis(50),
        connection_age_grace: Duration::from_millis(50),
        ..settings()
    })
    .await;
    let client = Http2::connect(server.address).await;
    let stream = client.try_send(grpc_request("Forever", &[]), frame(b""));
    assert!(tokio::time::timeout(Duration::from_millis(500), stream).await.is_err());
}

#[tokio::test]
async fn old_connections_are_closed_after_their_calls() {
    let connection_age_max = Duration::from_millis(100);
    let server = start_with(ServerSettings { connection_age_max, ..settings() }).await;
    let client = Http2::connect(server.address).await;
    assert_eq!(client.grpc("Wait", b"400").await.code(), "0");
    assert!(client.try_send(grpc_request("Echo", &[]), frame(b"")).await.is_err());
}

#[tokio::test]
async fn health_can_be_watched() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    let headers = [("content-type", "application/grpc"), ("te", "trailers")];
    let request = Http2::request("/grpc.health.v1.Health/Watch", &headers);
    let mut send = client.0.clone().ready().await.unwrap();
    let (answer, mut body) = send.send_request(request, false).unwrap();
    body.send_data(frame(b""), true).unwrap();
    let mut answer = soon(answer).await.unwrap().into_body();
    assert_eq!(soon(answer.data()).await.unwrap().unwrap(), frame(&[8, 1]));
    server.health.unwell("store", "gone");
    assert_eq!(soon(answer.data()).await.unwrap().unwrap(), frame(&[8, 2]));
}

#[tokio::test]
async fn reflection_lists_services_and_describes_health() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    let headers = [("content-type", "application/grpc"), ("te", "trailers")];
    for version in ["v1", "v1alpha"] {
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        // list_services (7) and file_containing_symbol (4).
        let list = frame(b"\x3a\x01*");
        let symbol = frame(b"\x22\x15grpc.health.v1.Health");
        let both = Bytes::from([list, symbol].concat());
        let answer = client.send(Http2::request(&path, &headers), both).await;
        assert_eq!(answer.code(), "0", "{}", answer.message());
        let messages = answer.messages();
        let text = |n: usize| String::from_utf8_lossy(&messages[n]).into_owned();
        assert!(text(0).contains("t.v1.Echo") && text(0).contains("grpc.health.v1.Health"));
        assert!(text(1).contains("HealthCheckRequest"), "{}", text(1));
    }
}

#[tokio::test]
async fn every_call_is_counted_once_under_its_protocol_and_code() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    client.grpc("Echo", b"").await;
    client.grpc("Fail", b"").await;
    client.grpc("Panic", b"").await;
    client.grpc("Count", b"3").await;
    client.send(grpc_request("Echo", &[("grpc-encoding", "brotli")]), frame(b"")).await;
    let head = "POST /t.v1.Echo/Echo HTTP/1.1\r\ncontent-type: application/json";
    crate::support::client::http1(server.address, head, b"{}").await;
    let metrics = server.metrics();
    for (system, method, code) in [
        ("grpc", "Echo", "OK"),
        ("grpc", "Fail", "FAILED_PRECONDITION"),
        ("grpc", "Panic", "INTERNAL"),
        ("grpc", "Count", "OK"),
        ("grpc", "Echo", "UNIMPLEMENTED"),
        ("connectrpc", "Echo", "OK"),
    ] {
        let line = format!(
            "rpc_server_call_duration_seconds_count{{rpc_system_name=\"{system}\",\
             rpc_method=\"t.v1.Echo/{method}\",rpc_status_code=\"{code}\"}} 1"
        );
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    assert!(metrics.contains("rpc_server_active_calls 0"), "{metrics}");
    assert!(metrics.contains("rpc_server_panics_total 1"), "{metrics}");
}
