//! The same over HTTP/2, where lengths, HEAD and broken answers are told differently.

use antiphon_core::Status;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;

use super::Server;

impl Server {
    async fn send2(&self, verb: &str, path: &str) -> http::Response<Incoming> {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(server), self.service());
        tokio::spawn(connection);
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().method(verb).uri(format!("http://things.example{path}"));
        sender.send_request(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap()
    }
}

#[tokio::test]
async fn calls_are_answered() {
    let server = Server::new();
    let answer = server.send2("GET", "/v1/things/a").await;
    assert_eq!(answer.status(), 200);
    let length = answer.headers()["content-length"].clone();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(length, body.len().to_string().as_str());
    let head = server.send2("HEAD", "/v1/things/a").await;
    assert_eq!(head.headers()["content-length"], length);
    assert!(head.into_body().collect().await.unwrap().to_bytes().is_empty());
    let refused = server.send2("GET", "/v1/things/a?nmae=x").await;
    assert_eq!(refused.status(), 400);
}

#[tokio::test]
async fn lines_break_off_after_a_failure() {
    let server = Server::new();
    server.things.answer(Ok(json!({"name": "a"})));
    server.things.answer(Err(Status::not_found("gone")));
    let mut body = server.send2("GET", "/v1/things/x:watch").await.into_body();
    let mut text = Vec::new();
    let broke_off = loop {
        match body.frame().await {
            None => break false,
            Some(Err(_)) => break true,
            Some(Ok(frame)) => text.extend_from_slice(frame.data_ref().unwrap()),
        }
    };
    assert!(broke_off, "the answer must not look whole");
    let text = String::from_utf8(text).unwrap();
    assert!(text.lines().last().unwrap().starts_with("{\"error\":{"), "{text}");
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_handler() {
    let server = Server::new();
    server.things.never_end();
    server.things.answer(Ok(json!({"name": "a"})));
    let mut body = server.send2("GET", "/v1/things/x:watch").await.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    server.things.stream_dropped().await;
}
