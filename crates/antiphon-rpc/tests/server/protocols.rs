//! One port, every protocol.

use crate::support::client::{Http2, frame, grpc_request, http1};
use crate::support::{soon, start};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

#[tokio::test]
async fn plain_unary_grpc_is_answered() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    let answer = client.grpc("Echo", b"hello").await;
    assert_eq!((answer.status, answer.code()), (200, "0"));
    assert_eq!(answer.headers["content-type"], "application/grpc");
    assert_eq!(answer.messages(), [Bytes::from("hello")]);
}

#[tokio::test]
async fn an_error_travels_as_headers_with_its_details_and_without_its_source() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    let answer = client.grpc("Fail", b"").await;
    assert_eq!((answer.status, answer.code(), answer.message()), (200, "9", "no: 100 %25"));
    let details = answer.headers["grpc-status-details-bin"].as_bytes();
    let details = base64::engine::general_purpose::STANDARD_NO_PAD.decode(details).unwrap();
    let details = String::from_utf8_lossy(&details);
    assert!(details.contains("OUT_OF_STOCK") && details.contains("google.rpc.ErrorInfo"));
    assert!(!details.contains("hunter2"));
}

#[tokio::test]
async fn a_panic_is_internal_and_says_nothing() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    let answer = client.grpc("Panic", b"").await;
    assert_eq!((answer.code(), answer.message()), ("13", "internal error"));
    assert_eq!(client.grpc("Echo", b"on").await.code(), "0");
}

#[tokio::test]
async fn all_four_shapes_are_answered_over_grpc() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    let count = client.grpc("Count", b"3").await;
    assert_eq!((count.code(), count.messages().len()), ("0", 3));
    let two = Bytes::from([frame(b"ab"), frame(b"cd")].concat());
    let request = || grpc_request("Join", &[]);
    let joined = client.send(request(), two.clone()).await;
    assert_eq!((joined.code(), joined.messages()), ("0", vec![Bytes::from("abcd")]));
    let chat = client.send(grpc_request("Chat", &[]), two).await;
    assert_eq!((chat.code(), chat.messages()), ("0", vec![Bytes::from("ab"), Bytes::from("cd")]));
}

#[tokio::test]
async fn connect_is_answered_over_http_1_in_both_forms() {
    let server = start().await;
    for kind in ["application/json", "application/proto"] {
        let head = format!("POST /t.v1.Echo/Echo HTTP/1.1\r\ncontent-type: {kind}");
        let (head, body) = soon(http1(server.address, &head, b"{}")).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("content-length: 2"), "{head}");
        assert_eq!(body, "{}");
    }
    let head = "POST /t.v1.Echo/Fail HTTP/1.1\r\ncontent-type: application/json";
    let (head, body) = soon(http1(server.address, head, b"{}")).await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["code"], "failed_precondition");
    assert_eq!(body["details"][0]["type"], "google.rpc.ErrorInfo");
}

#[tokio::test]
async fn connect_get_is_answered_where_nothing_is_changed() {
    let server = start().await;
    let query = "?connect=v1&encoding=json&message=%7B%7D";
    let head = format!("GET /t.v1.Echo/Echo{query} HTTP/1.1");
    let (head, body) = soon(http1(server.address, &head, b"")).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(body, "{}");
    let head = format!("GET /t.v1.Echo/Fail{query} HTTP/1.1");
    let (head, _) = soon(http1(server.address, &head, b"")).await;
    assert!(head.starts_with("HTTP/1.1 405"), "{head}");
}

#[tokio::test]
async fn connect_streams_end_with_an_end_frame() {
    let server = start().await;
    let head = "POST /t.v1.Echo/Count HTTP/1.1\r\ncontent-type: application/connect+json";
    let (head, body) = soon(http1(server.address, head, &frame(b"2"))).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(body.contains("{}"), "{body:?}");
}

#[tokio::test]
async fn grpc_web_is_answered_in_both_forms() {
    let server = start().await;
    let head = "POST /t.v1.Echo/Echo HTTP/1.1\r\ncontent-type: application/grpc-web+proto";
    let (head, body) = soon(http1(server.address, head, &frame(b"hello"))).await;
    assert!(head.contains("content-type: application/grpc-web+proto"), "{head}");
    assert!(body.contains("hello") && body.contains("grpc-status: 0"), "{body:?}");

    let text = STANDARD.encode(frame(b"hello"));
    let head = "POST /t.v1.Echo/Echo HTTP/1.1\r\ncontent-type: application/grpc-web-text";
    let (head, body) = soon(http1(server.address, head, text.as_bytes())).await;
    assert!(head.contains("content-type: application/grpc-web-text"), "{head}");
    assert!(body.contains(&STANDARD.encode(frame(b"hello"))), "{body:?}");
}

#[tokio::test]
async fn compressed_calls_are_answered() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    // "hello", gzipped.
    let gzip = STANDARD.decode("H4sIAAAAAAAAA8tIzcnJBwCGphA2BQAAAA==").unwrap();
    let mut framed = frame(&gzip).to_vec();
    framed[0] = 1;
    let request = grpc_request("Echo", &[("grpc-encoding", "gzip")]);
    let answer = client.send(request, framed.into()).await;
    assert_eq!((answer.code(), answer.messages()), ("0", vec![Bytes::from("hello")]));
}

#[tokio::test]
async fn the_context_of_the_caller_is_current_in_the_handler() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    let headers = [
        ("x-correlation-id", "order-7"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("grpc-timeout", "20S"),
    ];
    let answer = client.grpc_with("Context", b"", &headers).await;
    assert_eq!(
        answer.messages(),
        [Bytes::from("order-7 4bf92f3577b34da6a3ce929d0e0e4736 Some(19)")]
    );
    let head = "POST /t.v1.Echo/Context HTTP/1.1\r\ncontent-type: application/proto\r\n\
        x-correlation-id: order-8\r\nconnect-timeout-ms: 20000";
    let (_, body) = soon(http1(server.address, head, b"")).await;
    assert!(body.starts_with("order-8 ") && body.ends_with("Some(19)"), "{body}");
}
