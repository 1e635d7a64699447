//! Who answers a request: the lean path, the general path, or REST.

use std::future::ready;
use std::net::IpAddr;
use std::sync::Arc;

use antiphon_core::{BoxFuture, Status};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use hyper::body::Incoming;

use super::body::{Body, RequestBody};
use super::call::Call;
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

    /// Lets a request from `peer` in at once, and gives what answers it.
    ///
    /// Not only when there is time to begin with it: a call that waits for the processor is in
    /// progress, and the limits must know of it.
    pub(super) fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        peer: IpAddr,
    ) -> impl Future<Output = Response<Body>> + Send + use<> {
        let (answers, begun) = (Arc::clone(self), self.begin(request, peer));
        async move {
            match begun {
                Begun::Lean(call, body) => lean::answer(&answers.calls, call, body).await,
                Begun::Refused(status) => lean::failed(&status),
                Begun::Otherwise(answering) => answering.await,
            }
        }
    }

    fn begin(&self, request: Request<Incoming>, peer: IpAddr) -> Begun {
        let (head, incoming) = request.into_parts();
        let body = RequestBody::new(incoming, self.calls.settings().body_idle_timeout);
        match self.calls.method(head.uri.path()) {
            Some(method) if lean::is_lean(method, &head) => {
                match self.calls.enter(method, &head.headers, peer, Protocol::Grpc) {
                    Ok(call) => Begun::Lean(call, body),
                    Err(status) => Begun::Refused(status),
                }
            }
            method => {
                let request = Request::from_parts(head, body);
                Begun::Otherwise(self.otherwise(method, request, peer))
            }
        }
    }

    /// Answers what does not take the lean path.
    fn otherwise(
        &self,
        method: Option<&Arc<Method>>,
        request: Request<RequestBody>,
        peer: IpAddr,
    ) -> BoxFuture<'static, Response<Body>> {
        match method {
            Some(_) if is_grpc(request.headers()) && request.version() < Version::HTTP_2 => {
                Box::pin(ready(needs_http2()))
            }
            Some(_) if Rest::is_websocket(&request) => self.rest.handle(request, peer),
            Some(method) => self.general.answer(method, request, peer),
            None => match nothing_here(&request) {
                Some(response) => Box::pin(ready(response)),
                None => self.rest.handle(request, peer),
            },
        }
    }
}

/// A request that was looked at.
enum Begun {
    /// The lean path.
    Lean(Call, RequestBody),
    /// It was refused on the lean path.
    Refused(Status),
    /// Any other. Boxed, so that the future of the lean path stays small.
    Otherwise(BoxFuture<'static, Response<Body>>),
}

/// The answer to what is neither a method nor a path that REST could have.
fn nothing_here(request: &Request<RequestBody>) -> Option<Response<Body>> {
    let path = request.uri().path();
    if is_rpc(request.headers()) {
        let status = Status::unimplemented(format!("there is no method {path}"));
        let mut response = general::refused(&status, request.headers());
        // Connect tells an unknown path from an unknown feature by the HTTP status.
        if response.status() != StatusCode::OK {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        return Some(response);
    }
    let refused = layers::sanitise(path).err()?;
    Some(problem(StatusCode::BAD_REQUEST, refused.message()))
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
