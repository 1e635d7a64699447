//! Limits on how often methods are called.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{BoxError, BoxFuture, Health};
use antiphon_resilience::{RateSettings, RateStore, Taken};
use antiphon_rpc::server::{RateRule, RateSharing, Server};
use antiphon_telemetry::Telemetry;
use futures_util::StreamExt;
use http::HeaderName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error as SocketError;

use crate::support::client::{Http2, frame, http1};
use crate::support::{ServerSettings, echo, in_progress, is_shed, settings, soon, start_with};

/// A limit on Echo.
fn rates(name: &str, burst: u32, per_client: bool) -> ServerSettings {
    // The next place comes after a hundred seconds: no test sees it.
    let rate = RateSettings { per_second: 0.01, burst };
    let rule = RateRule { rate, per_client, shared: false };
    ServerSettings { rate_limits: [(name.to_owned(), rule)].into(), ..settings() }
}

/// The header of an answer over HTTP/1.1.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// About the hundred seconds after which the next place comes.
fn is_the_wait(seconds: &str) {
    assert!((80..=100).contains(&seconds.parse::<u32>().unwrap()), "{seconds}");
}

fn is_the_pushback(millis: &str) {
    assert!((80_000..=100_000).contains(&millis.parse::<u32>().unwrap()), "{millis}");
}

#[tokio::test]
async fn above_its_rate_a_grpc_call_is_told_the_code_the_reason_and_when_to_come_again() {
    let server = start_with(rates("t.v1.Echo", 1, false)).await;
    let client = Http2::connect(server.address).await;
    assert_eq!(client.grpc("Echo", b"").await.code(), "0");
    for method in ["Echo", "Count"] {
        let answer = client.grpc(method, b"1").await;
        assert_eq!((answer.status, answer.code()), (200, "8"), "{method}");
        assert!(answer.message().contains("more calls came"), "{}", answer.message());
        let said = if answer.trailers.is_empty() { answer.headers } else { answer.trailers };
        is_the_pushback(said["grpc-retry-pushback-ms"].to_str().unwrap());
        assert!(said.contains_key("grpc-status-details-bin"));
    }
    is_shed(&server, "rate", 2);
}

#[tokio::test]
async fn above_its_rate_a_grpc_web_call_is_told_in_the_trailers_of_the_body() {
    let server = start_with(rates("t.v1.Echo/Echo", 1, false)).await;
    let client = Http2::connect(server.address).await;
    assert_eq!(client.grpc("Echo", b"").await.code(), "0");
    let request =
        Http2::request("/t.v1.Echo/Echo", &[("content-type", "application/grpc-web+proto")]);
    let answer = client.send(request, frame(b"")).await;
    assert_eq!(answer.status, 200);
    let trailers = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(trailers.contains("grpc-status: 8"), "{trailers}");
    let pushback = trailers.lines().find_map(|line| line.strip_prefix("grpc-retry-pushback-ms: "));
    is_the_pushback(pushback.unwrap());
}

#[tokio::test]
async fn above_its_rate_a_connect_call_is_told_by_status_header_and_body() {
    let server = start_with(rates("t.v1.Echo/Echo", 1, false)).await;
    let head = "POST /t.v1.Echo/Echo HTTP/1.1\r\ncontent-type: application/json";
    let (first, _) = soon(http1(server.address, head, b"{}")).await;
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    let (head, body) = soon(http1(server.address, head, b"{}")).await;
    assert!(head.starts_with("HTTP/1.1 429"), "{head}");
    is_the_wait(header(&head, "retry-after").unwrap());
    is_the_pushback(header(&head, "trailer-grpc-retry-pushback-ms").unwrap());
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["code"], "resource_exhausted");
    let details = body["details"].to_string();
    assert!(details.contains("google.rpc.ErrorInfo"), "{details}");
    assert!(details.contains("google.rpc.RetryInfo"), "{details}");
    is_shed(&server, "rate", 1);
}

#[tokio::test]
async fn above_its_rate_a_rest_call_gets_problem_details() {
    let server = start_with(rates("t.v1.Echo", 1, false)).await;
    let (first, _) = soon(http1(server.address, "GET /v1/echo/a HTTP/1.1", b"")).await;
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    // A unary method, and a stream.
    for path in ["/v1/echo/a", "/v1/count/3"] {
        let (head, body) = soon(http1(server.address, &format!("GET {path} HTTP/1.1"), b"")).await;
        assert!(head.starts_with("HTTP/1.1 429"), "{head}");
        assert_eq!(header(&head, "content-type"), Some("application/problem+json"));
        is_the_wait(header(&head, "retry-after").unwrap());
        let expected = json!({
            "type": "about:blank",
            "title": "Too Many Requests",
            "status": 429,
            "detail": "more calls came than are allowed in this time",
            "code": "RESOURCE_EXHAUSTED",
            "reason": "RATE_LIMITED",
            "domain": "antiphon",
        });
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
    }
    is_shed(&server, "rate", 2);
}

#[tokio::test]
async fn above_its_rate_a_websocket_is_not_opened() {
    let server = start_with(rates("t.v1.Echo/Chat", 1, false)).await;
    let open = || async {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let url = format!("ws://{}/t.v1.Echo/Chat", server.address);
        soon(tokio_tungstenite::client_async(url, stream)).await
    };
    let (mut first, _) = open().await.unwrap();
    let Err(SocketError::Http(answer)) = open().await else { panic!("it is refused") };
    assert_eq!(answer.status(), 429);
    is_the_wait(answer.headers()["retry-after"].to_str().unwrap());
    first.close(None).await.unwrap();
    while first.next().await.is_some() {}
}

/// A stream that is refused goes over another path than a unary call.
#[tokio::test]
async fn calls_that_matter_little_are_told_not_to_come_again_whatever_their_kind() {
    let server = start_with(ServerSettings { calls_max: 1, ..settings() }).await;
    let client = Http2::connect(server.address).await;
    let stream = {
        let client = client.clone();
        tokio::spawn(async move { client.grpc("Forever", b"").await })
    };
    in_progress(&server, 1).await;
    for method in ["Echo", "Count"] {
        let answer = client.grpc_with(method, b"1", &[("x-priority", "sheddable")]).await;
        assert_eq!(answer.code(), "14", "{method}");
        let said = if answer.trailers.is_empty() { answer.headers } else { answer.trailers };
        assert_eq!(said["grpc-retry-pushback-ms"], "-1", "{method}");
    }
    stream.abort();
}

#[tokio::test]
async fn a_rate_of_a_service_is_for_all_its_methods_together() {
    let server = start_with(rates("t.v1.Echo", 2, false)).await;
    let client = Http2::connect(server.address).await;
    assert_eq!(client.grpc("Echo", b"").await.code(), "0");
    assert_eq!(client.grpc("Wait", b"0").await.code(), "0");
    assert_eq!(client.grpc("Echo", b"").await.code(), "8");
    let stream = client.grpc("Count", b"1").await;
    assert_eq!(stream.code(), "8");
}

#[tokio::test]
async fn a_rate_can_be_for_each_client() {
    let server = start_with(ServerSettings {
        client_header: Some(HeaderName::from_static("x-tenant")),
        ..rates("t.v1.Echo/Echo", 2, true)
    })
    .await;
    let client = Http2::connect(server.address).await;
    for tenant in ["one", "other"] {
        let mut codes = Vec::new();
        for _ in 0..3 {
            let answer = client.grpc_with("Echo", b"", &[("x-tenant", tenant)]).await;
            codes.push(answer.code().to_owned());
        }
        assert_eq!(codes, ["0", "0", "8"], "{tenant}");
    }
    // Whoever does not say is known by the address.
    assert_eq!(client.grpc("Echo", b"").await.code(), "0");
}

#[tokio::test]
async fn a_rate_for_what_is_not_served_is_refused_at_the_start() {
    let services: Vec<Arc<dyn antiphon_rpc::Service>> = vec![Arc::new(echo::Echo::default())];
    let settings = rates("t.v1.Echo/Ecko", 1, false);
    let (telemetry, health) = (Telemetry::new(), Health::new());
    let error = Server::bind(services, settings, &telemetry, &health).await.unwrap_err();
    let error = error.to_string();
    assert!(error.contains("t.v1.Echo/Ecko") && error.contains("out of: t.v1.Echo"), "{error}");
}

/// A store of shared limits that never has anything.
struct Nothing;

impl RateStore for Nothing {
    fn take<'a>(
        &'a self,
        _: &'a [u8],
        _: RateSettings,
        _: u32,
    ) -> BoxFuture<'a, Result<Taken, BoxError>> {
        Box::pin(async {
            // The answer is not there at once.
            tokio::task::yield_now().await;
            Ok(Taken { granted: 0, wait: Duration::from_millis(1) })
        })
    }
}

/// Each call comes after the pause that the one before was told, so each has to wait for the store.
#[tokio::test]
async fn a_call_that_had_to_wait_for_a_shared_limit_is_refused_like_any_other() {
    let mut settings = rates("t.v1.Echo", 1, false);
    settings.rate_limits.values_mut().for_each(|rule| rule.shared = true);
    settings.rate_sharing = Some(RateSharing::new(Arc::new(Nothing), Duration::from_secs(10)));
    let server = start_with(settings).await;
    let client = Http2::connect(server.address).await;
    let pause = || tokio::time::sleep(Duration::from_millis(6));
    for method in ["Echo", "Count"] {
        let answer = client.grpc(method, b"1").await;
        assert_eq!((answer.status, answer.code()), (200, "8"), "{method}");
        let said = if answer.trailers.is_empty() { answer.headers } else { answer.trailers };
        assert!(said.contains_key("grpc-retry-pushback-ms"), "{method}");
        pause().await;
    }
    let head = "POST /t.v1.Echo/Echo HTTP/1.1\r\ncontent-type: application/json";
    for head in [head, "GET /v1/echo/a HTTP/1.1", "GET /v1/count/3 HTTP/1.1"] {
        let (head, _) = soon(http1(server.address, head, b"")).await;
        assert!(head.starts_with("HTTP/1.1 429"), "{head}");
        assert_eq!(header(&head, "retry-after"), Some("1"));
        pause().await;
    }
    // Nothing of it stays in progress, and each was counted once.
    is_shed(&server, "rate", 5);
    in_progress(&server, 0).await;
    let metrics = server.metrics();
    let refused = metrics.lines().filter(|line| {
        line.starts_with("rpc_server_call_duration_seconds_count")
            && line.contains("rpc_status_code=\"RESOURCE_EXHAUSTED\"")
    });
    let refused: u32 =
        refused.map(|line| line.rsplit(' ').next().unwrap().parse::<u32>().unwrap()).sum();
    assert_eq!(refused, 5, "{metrics}");
}

/// A store that never answers.
struct Silent;

impl RateStore for Silent {
    fn take<'a>(
        &'a self,
        _: &'a [u8],
        _: RateSettings,
        _: u32,
    ) -> BoxFuture<'a, Result<Taken, BoxError>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_call_whose_time_is_over_does_not_wait_for_the_store() {
    let mut settings = rates("t.v1.Echo", 1, false);
    settings.rate_limits.values_mut().for_each(|rule| rule.shared = true);
    settings.rate_sharing = Some(RateSharing::new(Arc::new(Silent), Duration::from_secs(600)));
    let server = start_with(settings).await;
    let client = Http2::connect(server.address).await;
    for method in ["Echo", "Count"] {
        let answer = client.grpc_with(method, b"1", &[("grpc-timeout", "50m")]).await;
        assert_eq!(answer.code(), "4", "{method}");
    }
    // One that is given up is not in progress any more.
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { client.grpc("Echo", b"1").await })
    };
    in_progress(&server, 1).await;
    waiting.abort();
    in_progress(&server, 0).await;
}

#[tokio::test]
async fn a_shared_rate_without_a_store_is_refused_at_the_start() {
    let services: Vec<Arc<dyn antiphon_rpc::Service>> = vec![Arc::new(echo::Echo::default())];
    let mut settings = rates("t.v1.Echo", 1, false);
    settings.rate_limits.values_mut().for_each(|rule| rule.shared = true);
    let (telemetry, health) = (Telemetry::new(), Health::new());
    let error = Server::bind(services, settings, &telemetry, &health).await.unwrap_err();
    let error = error.to_string();
    assert!(error.contains("server.rate_limits.\"t.v1.Echo\".shared"), "{error}");
    assert!(error.contains("set server.shared_rates.url"), "{error}");
}
