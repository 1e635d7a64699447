//! Streams over WebSocket (RFC 6455 over HTTP/1.1).
//!
//! A stream is reached at its route (`GET` with `Upgrade: websocket`, whatever HTTP method the contract
//! declares) or at the method's own path.
//!
//! * Subprotocols: `antiphon.json` (also when the client names none) sends messages as text frames in
//!   canonical JSON; `antiphon.proto` sends them as binary frames. A frame of the other kind is
//!   refused with 1003.
//! * What the path says is a part of every message of the client, and what the query says of the first
//!   one. Where the client sends no messages of its own (a server stream whose route has no body),
//!   the call begins at once.
//! * An empty text frame ends the client's messages; the answers go on. A close frame ends the call.
//! * The server closes with 1000 when the stream is done, and with 4000 + the gRPC code when it
//!   failed, after a text frame `{"error": problem}`.
//! * The server pings; a client that is silent for too long, a message that is too long and a socket
//!   that is too old are closed.
//!
//! Pages of other origins may not connect unless the settings name them: browsers send cookies along
//! without asking the page.

mod handshake;
mod session;

use std::net::IpAddr;
use std::sync::Arc;

use antiphon_core::Status;
use bytes::Bytes;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use tokio::sync::watch;

use self::handshake::Handshake;
use self::session::{Opening, Session};
use super::Shared;
use super::problem;
use super::request::{BodyPlan, Said};
use super::routes::Route;
use crate::server::{Body, Protocol, RequestBody};
use crate::service::{Codec, MethodKind};

pub(super) use handshake::{is_asked_for, needed};

/// The WebSockets that are open.
#[derive(Debug)]
pub(super) struct Sockets(watch::Sender<usize>);

impl Default for Sockets {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Sockets {
    fn open(&self) -> OpenSocket {
        self.0.send_modify(|open| *open += 1);
        OpenSocket(self.0.clone())
    }

    pub(super) async fn closed(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|open| *open == 0).await;
    }
}

/// Counts one socket until it is dropped.
struct OpenSocket(watch::Sender<usize>);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

/// Answers the request that begins a WebSocket; the session goes on in a task of its own.
pub(super) fn answer(
    shared: &Arc<Shared>,
    request: Request<RequestBody>,
    peer: IpAddr,
) -> Response<Body> {
    match open(shared, request, peer) {
        Ok(response) => response,
        Err(refused) => *refused,
    }
}

fn open(
    shared: &Arc<Shared>,
    mut request: Request<RequestBody>,
    peer: IpAddr,
) -> Result<Response<Body>, Box<Response<Body>>> {
    let refuse = |status: &Status| Box::new(problem::response(status, None));
    let path = request.uri().path();
    let Some(route) = shared.routes.find_stream(path) else {
        let message = format!("there is no stream at {path}; only streams go over WebSocket");
        return Err(refuse(&Status::not_found(message)));
    };
    let route = Arc::clone(route);
    let handshake = Handshake::read(request.headers(), &shared.settings.origins)
        .map_err(|refused| Box::new(refused.response()))?;
    let first = First::new(&route, &request, handshake.codec).map_err(|status| refuse(&status))?;
    let opening = first.opening(shared, &route).map_err(|status| refuse(&status))?;
    let call = shared
        .calls
        .enter(&route.method, request.headers(), peer, Protocol::WebSocket)
        .map_err(|status| refuse(&status))?;
    let upgrade = hyper::upgrade::on(&mut request);
    let session = Session::new(Arc::clone(shared), route, call, handshake.codec, opening);
    let open = shared.sockets.open();
    tokio::spawn(async move {
        session.run(upgrade).await;
        drop(open);
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, handshake.accept);
    if let Some(protocol) = handshake.protocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok(response)
}

/// What the path and the query say, for the first message.
struct First {
    path: String,
    query: String,
}

impl First {
    fn new(route: &Route, request: &Request<RequestBody>, codec: Codec) -> Result<Self, Status> {
        let uri = request.uri();
        let query = uri.query().unwrap_or_default();
        if codec == Codec::Proto && (route.request.takes_from_path() || !query.is_empty()) {
            return Err(Status::invalid_argument(format!(
                "antiphon.proto cannot add what the path and the query say to a message; \
                 connect to {} or use antiphon.json",
                route.method.info.path
            )));
        }
        Ok(Self { path: uri.path().to_owned(), query: query.to_owned() })
    }

    /// What is known of the client's messages before it sends any.
    fn opening(self, shared: &Shared, route: &Route) -> Result<Opening, Status> {
        let waits = route.method.info.kind != MethodKind::ServerStream
            || route.request.body != BodyPlan::None;
        if waits {
            return Ok(Opening::Waits { path: self.path, query: self.query });
        }
        let said = Said { path: &self.path, query: &self.query };
        let message = route.request.message(&shared.schema, said, "", Bytes::new())?;
        Ok(Opening::Complete(message))
    }
}
