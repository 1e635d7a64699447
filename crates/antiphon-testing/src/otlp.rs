//! A collector of traces that remembers what it was sent.
//!
//! It speaks OTLP over HTTP with the official types, so that what a process exports is read by
//! somebody else's code. [`Recorder::trace`] answers whether the spans of a trace are one tree.

mod tree;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use tree::{NotATree, Tree};

/// A span as it arrived. Ids are lower-case hex, as they are written in logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedSpan {
    /// The trace it belongs to.
    pub trace_id: String,
    /// Its own id.
    pub span_id: String,
    /// The span it is part of; `None` for the root.
    pub parent_id: Option<String>,
    /// What it is called.
    pub name: String,
    /// `Server`, `Client`, `Producer`, `Consumer` or `Internal`.
    pub kind: String,
    /// The service that recorded it.
    pub service: String,
    /// Its attributes, those that are texts.
    pub attributes: BTreeMap<String, String>,
    /// Trace and span ids of its links.
    pub links: Vec<(String, String)>,
    /// Why it failed.
    pub error: Option<String>,
    /// When it began and ended, in nanoseconds since the epoch.
    pub time: (u64, u64),
}

/// A collector on a port of its own; ends when it is dropped.
#[derive(Debug)]
pub struct Recorder {
    address: SocketAddr,
    state: Arc<State>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    spans: watch::Sender<Vec<RecordedSpan>>,
    /// What requests are answered with.
    status: AtomicU16,
}

impl Recorder {
    /// Listens on a free port of this machine.
    ///
    /// # Errors
    /// There is no such port.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let state =
            Arc::new(State { spans: watch::Sender::new(Vec::new()), status: AtomicU16::new(200) });
        let server = tokio::spawn(serve(listener, Arc::clone(&state)));
        Ok(Self { address, state, server })
    }

    /// What to write into `telemetry.traces.endpoint`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}/v1/traces", self.address)
    }

    /// Answers with this status from now on; what is refused is not remembered.
    pub fn answer_with(&self, status: StatusCode) {
        self.state.status.store(status.as_u16(), Ordering::Relaxed);
    }

    /// Everything that arrived.
    #[must_use]
    pub fn spans(&self) -> Vec<RecordedSpan> {
        self.state.spans.borrow().clone()
    }

    /// Waits until `enough` is content with what arrived, and returns that.
    ///
    /// # Errors
    /// What arrived instead, when the time is over.
    pub async fn wait_for(
        &self,
        within: Duration,
        mut enough: impl FnMut(&[RecordedSpan]) -> bool,
    ) -> Result<Vec<RecordedSpan>, Vec<RecordedSpan>> {
        let mut spans = self.state.spans.subscribe();
        let waited = spans.wait_for(|spans| enough(spans));
        match tokio::time::timeout(within, waited).await {
            Ok(Ok(spans)) => Ok(spans.clone()),
            Ok(Err(_)) | Err(_) => Err(self.spans()),
        }
    }

    /// The spans of one trace as a tree.
    ///
    /// # Errors
    /// Why they are none: no root, several roots, or a parent that never arrived.
    pub fn trace(&self, trace_id: &str) -> Result<Tree, NotATree> {
        let all = self.spans().into_iter();
        Tree::new(all.filter(|span| span.trace_id == trace_id).collect())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let state = Arc::clone(&state);
                async move { Ok::<_, Infallible>(take(&state, request).await) }
            });
            // A client that leaves ends its connection, and nothing else.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn take(state: &State, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let refuse = |status, words: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(words.as_bytes())));
        *response.status_mut() = status;
        response
    };
    let status = StatusCode::from_u16(state.status.load(Ordering::Relaxed)).unwrap_or_default();
    if !status.is_success() {
        return refuse(status, "as the test asks");
    }
    if request.uri().path() != "/v1/traces" {
        return refuse(StatusCode::NOT_FOUND, "not the path of traces");
    }
    let Ok(body) = request.into_body().collect().await else {
        return refuse(StatusCode::BAD_REQUEST, "the body broke off");
    };
    match ExportTraceServiceRequest::decode(body.to_bytes()) {
        Ok(request) => {
            state.spans.send_modify(|spans| spans.extend(read(request)));
            Response::default()
        }
        Err(_) => refuse(StatusCode::BAD_REQUEST, "not an ExportTraceServiceRequest"),
    }
}

fn read(request: ExportTraceServiceRequest) -> Vec<RecordedSpan> {
    let mut recorded = Vec::new();
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.unwrap_or_default();
        let service = texts(resource.attributes).remove("service.name").unwrap_or_default();
        let scopes = of_resource.scope_spans.into_iter();
        recorded.extend(scopes.flat_map(|scope| scope.spans).map(|span| from_wire(span, &service)));
    }
    recorded
}

fn from_wire(span: Span, service: &str) -> RecordedSpan {
    RecordedSpan {
        trace_id: hex(&span.trace_id),
        span_id: hex(&span.span_id),
        parent_id: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
        kind: SpanKind::try_from(span.kind).map(|kind| format!("{kind:?}")).unwrap_or_default(),
        name: span.name,
        service: service.to_owned(),
        attributes: texts(span.attributes),
        links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
        error: span.status.filter(|status| status.code != 0).map(|status| status.message),
        time: (span.start_time_unix_nano, span.end_time_unix_nano),
    }
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes
        .into_iter()
        .filter_map(|attribute| match attribute.value?.value? {
            Value::StringValue(text) => Some((attribute.key, text)),
            _ => None,
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
