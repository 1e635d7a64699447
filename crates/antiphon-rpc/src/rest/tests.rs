//! REST from the wire: a real HTTP/1.1 connection in memory, and a service that shows what it was
//! sent.

mod answers;
mod anything;
mod bodies;
mod http2;
mod pages;
mod paths;
mod queries;
mod service;
mod sockets;
mod streams;

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::BoxFuture;
use antiphon_telemetry::Telemetry;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::io::DuplexStream;

use self::service::Things;
pub(super) use self::service::descriptor_set;
use super::{Rest, RestSettings};
use crate::server::{Body, Calls, RequestBody, ServerSettings};
use crate::service::Service;

/// A server for [`Things`].
struct Server {
    rest: Rest,
    things: Things,
}

/// An answer that has been read.
#[derive(Debug)]
struct Answer {
    head: http::response::Parts,
    body: Bytes,
}

impl Answer {
    fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    fn header(&self, name: &str) -> &str {
        self.head.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// The fields and rules that a problem names.
    fn violations(&self) -> Vec<(String, String)> {
        let json = self.json();
        assert_eq!(self.header("content-type"), "application/problem+json", "{json}");
        assert_eq!(json["status"], self.status());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let violations = json["violations"].as_array().cloned().unwrap_or_default();
        violations.iter().map(|one| (text(&one["field"]), text(&one["rule"]))).collect()
    }
}

impl Server {
    fn new() -> Self {
        Self::with(RestSettings::default(), ServerSettings::default())
    }

    fn with(rest: RestSettings, settings: ServerSettings) -> Self {
        let settings = ServerSettings { rest, ..settings };
        let things = Things::default();
        let services: Vec<Arc<dyn Service>> = vec![Arc::new(things.clone())];
        let calls = Calls::new(&services, settings, &Telemetry::new()).unwrap();
        let rest = Rest::new(&services, &calls).unwrap();
        Self { rest, things }
    }

    /// What hyper calls for each request.
    fn service(
        &self,
    ) -> impl HttpService<
        Incoming,
        ResBody = Body,
        Error = Infallible,
        Future = BoxFuture<'static, Result<Response<Body>, Infallible>>,
    > + use<> {
        let rest = self.rest.clone();
        service_fn(move |request: Request<Incoming>| -> BoxFuture<'static, _> {
            let rest = rest.clone();
            Box::pin(async move {
                let request = request.map(|body| RequestBody::new(body, Duration::from_secs(5)));
                Ok(rest.handle(request, Ipv4Addr::LOCALHOST.into()).await)
            })
        })
    }

    /// The client's end of a new connection.
    fn connect(&self) -> DuplexStream {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(server), self.service())
            .with_upgrades();
        tokio::spawn(connection);
        client
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(self.connect())).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }

    async fn call(&self, request: Request<Full<Bytes>>) -> Answer {
        let (head, body) = self.send(request).await.into_parts();
        Answer { head, body: body.collect().await.unwrap().to_bytes() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(request("GET", path, &[], "")).await
    }

    /// Sends JSON.
    async fn json(&self, verb: &str, path: &str, body: &str) -> Answer {
        self.call(request(verb, path, &[("content-type", "application/json")], body.to_owned()))
            .await
    }

    /// The message that the service was sent, in canonical JSON.
    fn received(&self) -> Value {
        self.things.received().pop().expect("the service was called")
    }
}

fn request(
    verb: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(verb).uri(path).header("host", "things.example");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into())).unwrap()
}
