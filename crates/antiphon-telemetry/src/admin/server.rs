//! The server of the admin port: HTTP/1.1, a few connections at a time, short bodies.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{BoxError, Component, Shutdown, Stage, Status};
use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::page::{Page, PageRequest, parse_query};
use super::{Pages, pages};

/// More connections than this wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// A body above this is refused.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long a client may take for the head of a request, and how long a connection may be idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {reason}")]
pub struct BindError {
    address: SocketAddr,
    reason: String,
}

impl BindError {
    fn new(address: SocketAddr, error: &io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "the port is in use by another process; choose another with `admin.listen`".into()
            }
            io::ErrorKind::PermissionDenied => {
                "this user may not use the port; choose one above 1023 with `admin.listen`".into()
            }
            io::ErrorKind::AddrNotAvailable => {
                "this machine does not have the address; change `admin.listen`".into()
            }
            _ => error.to_string(),
        };
        Self { address, reason }
    }
}

/// The admin port, listening.
pub struct AdminServer {
    listener: TcpListener,
    address: SocketAddr,
    pages: Pages,
}

impl AdminServer {
    pub(super) async fn bind(address: SocketAddr, pages: Pages) -> Result<Self, BindError> {
        let bound = async {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address, pages })
        };
        bound.await.map_err(|error| BindError::new(address, &error))
    }

    /// Where it listens, with the port that was chosen if the settings ask for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl std::fmt::Debug for AdminServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AdminServer({})", self.address)
    }
}

impl Component for AdminServer {
    fn name(&self) -> &str {
        "admin"
    }

    fn stage(&self) -> Stage {
        Stage::Observe
    }

    /// Answers until draining begins: it is the last to end, so that the drain can be watched.
    async fn run(self, shutdown: Shutdown) -> Result<(), BoxError> {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = shutdown.unless_draining(async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, self.listener.accept().await)
            });
            let Some((place, accepted)) = accepted.await else {
                return Ok(());
            };
            match accepted {
                Ok((stream, _)) => {
                    let pages = self.pages.clone();
                    let shutdown = shutdown.clone();
                    tokio::spawn(async move {
                        serve(stream, pages, shutdown).await;
                        drop(place);
                    });
                }
                // Out of file descriptors, or the client left: neither ends the port.
                Err(error) => {
                    tracing::warn!(%error, "the admin port could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve(stream: TcpStream, pages: Pages, shutdown: Shutdown) {
    let service = service_fn(move |request| {
        let pages = pages.clone();
        async move { Ok::<_, std::convert::Infallible>(respond(&pages, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // A broken connection is its client's affair.
    let _ = shutdown.unless_draining(connection).await;
}

async fn respond(pages: &Pages, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let head = request.method() == Method::HEAD;
    let page = answer(pages, request).await.unwrap_or_else(|status| refusal(&status));
    let body = if head { Bytes::new() } else { page.body };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = page.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn answer(pages: &Pages, request: Request<Incoming>) -> Result<Page, Status> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    if path == "/" {
        return Ok(pages::index(pages));
    }
    let (entry, rest) = pages.find(path).ok_or_else(|| {
        Status::not_found(format!("there is no page {path}; / lists those that are"))
    })?;
    let accept = head.headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let handler = Arc::clone(&entry.handler);
    let request = PageRequest {
        rest: percent_decode_str(rest).decode_utf8_lossy().into_owned(),
        query: parse_query(head.uri.query().unwrap_or_default()),
        accept: accept.unwrap_or_default().to_owned(),
        method: head.method,
        body: read(body).await?,
    };
    handler(request).await
}

async fn read(body: Incoming) -> Result<Bytes, Status> {
    let limited = Limited::new(body, BODY_BYTES_MAX).collect();
    match tokio::time::timeout(HEADER_TIMEOUT, limited).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => {
            Err(Status::invalid_argument(format!("the body cannot be read: {error}")))
        }
        Err(_) => Err(Status::deadline_exceeded()),
    }
}

/// Problem details (RFC 9457).
fn refusal(status: &Status) -> Page {
    let code = StatusCode::from_u16(status.http_status()).unwrap_or(StatusCode::BAD_REQUEST);
    if code.is_server_error() {
        tracing::warn!(
            error = status as &(dyn std::error::Error + 'static),
            "an admin page failed"
        );
    }
    let problem = serde_json::json!({
        "title": status.code().name(),
        "status": code.as_u16(),
        "detail": status.message(),
    });
    Page::new("application/problem+json", format!("{problem:#}\n")).with_status(code)
}
