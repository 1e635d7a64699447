//! Who answers a request: the lean path, the general path, or REST.

use std::sync::Arc;

use antiphon_core::Status;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use hyper::body::Incoming;

use super::body::{Body, RequestBody};
use super::general::{self, General};
use super::layers::{self, Calls, Protocol};
use super::lean;
use super::methods::Method;
use crate::rest::Rest;

/// Answers the requests of every connection.
pub(super) struct Answers {
    calls: Calls,
    general: General,
    rest: Rest,
}

impl Answers {
    pub(super) fn new(calls: &Calls, rest: Rest) -> Self {
        Self { calls: calls.clone(), general: General::new(calls), rest }
    }

    /// Waits until no WebSocket is open.
    pub(super) async fn sockets_closed(&self) {
        self.rest.closed().await;
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, incoming) = request.into_parts();
        let body = RequestBody::new(incoming, self.calls.settings().body_idle_timeout);
        match self.calls.method(head.uri.path()) {
            Some(method) if lean::is_lean(method, &head) => {
                let entered = self.calls.enter(method, &head.headers, Protocol::Grpc);
                // Not kept while the call is answered.
                drop(head);
                match entered {
                    Ok(call) => lean::answer(&self.calls, method, call, body).await,
                    Err(status) => lean::failed(&status),
                }
            }
            // Boxed, so that the future of the lean path stays small.
            method => Box::pin(self.otherwise(method, Request::from_parts(head, body))).await,
        }
    }

    /// Answers what does not take the lean path.
    async fn otherwise(
        &self,
        method: Option<&Arc<Method>>,
        request: Request<RequestBody>,
    ) -> Response<Body> {
        match method {
            Some(_) if is_grpc(request.headers()) && request.version() < Version::HTTP_2 => {
                needs_http2()
            }
            Some(_) if Rest::is_websocket(&request) => self.rest.handle(request).await,
            Some(method) => self.general.answer(method, request).await,
            None => self.elsewhere(request).await,
        }
    }

    /// Answers what is not a path of a method.
    async fn elsewhere(&self, request: Request<RequestBody>) -> Response<Body> {
        let path = request.uri().path();
        if is_rpc(request.headers()) {
            let status = Status::unimplemented(format!("there is no method {path}"));
            let mut response = general::refused(&status, request.headers());
            // Connect tells an unknown path from an unknown feature by the HTTP status.
            if response.status() != StatusCode::OK {
                *response.status_mut() = StatusCode::NOT_FOUND;
            }
            return response;
        }
        if let Err(status) = layers::sanitise(path) {
            return problem(StatusCode::BAD_REQUEST, status.message());
        }
        self.rest.handle(request).await
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| {
        kind.as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// Whether only an RPC client sends this: gRPC, gRPC-Web, or Connect in a form that is not plain JSON.
fn is_rpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes();
        kind.starts_with(b"application/grpc")
            || kind.starts_with(b"application/connect+")
            || kind == b"application/proto"
    }) || headers.contains_key("connect-protocol-version")
}

fn needs_http2() -> Response<Body> {
    problem(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "gRPC needs HTTP/2")
}

/// Problem details (RFC 9457) for what is refused before anybody knows the method.
fn problem(status: StatusCode, detail: &str) -> Response<Body> {
    let title = status.canonical_reason().unwrap_or_default();
    let problem = serde_json::json!({
        "type": "about:blank",
        "title": title,
        "status": status.as_u16(),
        "detail": detail,
    });
    let mut response = Response::new(Body::full(Bytes::from(problem.to_string())));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
