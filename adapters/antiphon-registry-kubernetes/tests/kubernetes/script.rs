//! An API server that answers lists and watches from a script, as the documentation of Kubernetes shows
//! them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use antiphon_registry_kubernetes::Settings;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// What is answered next.
pub(crate) enum Scripted {
    List(Value),
    Refusal(StatusCode),
    /// These lines, and then the end of the answer, unless it stays open.
    Watch(Vec<Value>, bool),
}

#[derive(Clone, Default)]
pub(crate) struct ApiServer {
    script: Arc<Mutex<VecDeque<Scripted>>>,
    asked: Arc<Mutex<Vec<String>>>,
    pub(crate) tokens: Arc<Mutex<Vec<String>>>,
    /// Watches that stay open.
    open: Arc<Mutex<Vec<mpsc::UnboundedSender<Frame<Bytes>>>>>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The frames of an answer that goes on.
struct Frames(mpsc::UnboundedReceiver<Frame<Bytes>>);

impl futures_core::Stream for Frames {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

impl ApiServer {
    pub(crate) async fn start(script: Vec<Scripted>) -> (Self, SocketAddr) {
        let server = Self { script: Arc::new(Mutex::new(script.into())), ..Self::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let shared = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                let answer = service_fn(move |request| {
                    let answer = shared.answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer);
                tokio::spawn(connection);
            }
        });
        (server, address)
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let path = request.uri().to_string();
        let token = request.headers().get("authorization");
        self.tokens.lock().extend(token.map(|token| token.to_str().expect("text").to_owned()));
        let is_watch = path.contains("watch=true");
        self.asked.lock().push(path.clone());
        let next = self.script.lock().pop_front();
        let scripted = next.unwrap_or(Scripted::Refusal(StatusCode::SERVICE_UNAVAILABLE));
        match scripted {
            Scripted::List(list) => {
                assert!(!is_watch, "a list is scripted, and a watch was asked for");
                Response::new(Full::from(list.to_string()).boxed_unsync())
            }
            Scripted::Refusal(status) => refusal(status),
            Scripted::Watch(lines, stays) => {
                assert!(is_watch, "a watch is scripted, and a list was asked for");
                let (sender, receiver) = mpsc::unbounded_channel();
                for line in lines {
                    sender.send(Frame::data(format!("{line}\n").into())).expect("it is read");
                }
                if stays {
                    self.open.lock().push(sender);
                }
                Response::new(StreamBody::new(Frames(receiver)).boxed_unsync())
            }
        }
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

fn refusal(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(Full::from("refused").boxed_unsync());
    *answer.status_mut() = status;
    answer
}

pub(crate) fn slice(name: &str, version: u32, endpoints: &[(&str, bool, bool)]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, ready, terminating)| {
            json!({"addresses": [address], "zone": "z1", "nodeName": "n1", "conditions":
                {"ready": ready, "serving": ready | terminating, "terminating": terminating}})
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": version.to_string(),
            "labels": {"kubernetes.io/service-name": "orders"}},
        "endpoints": endpoints,
        "ports": [{"name": "grpc", "port": 8080, "protocol": "TCP"}],
    })
}

pub(crate) fn list(version: u32, items: &[Value]) -> Value {
    json!({
        "kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"resourceVersion": version.to_string()}, "items": items,
    })
}

pub(crate) fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

pub(crate) fn settings(address: SocketAddr) -> Settings {
    Settings {
        url: format!("http://{address}"),
        ca_file: None,
        token_file: None,
        ..Settings::default()
    }
}
