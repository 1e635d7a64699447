//! An agent that says what Consul cannot be made to say: an index that goes backwards or never waits,
//! refusals.
//!
//! For the rest it follows the documentation of the API, as far as the registry uses it: the index of
//! everything grows with every change and is told with each answer; a query with an index waits until
//! the index is past it or its time is over; a service or check that is not there is answered with 404.
//! Checks never run out here: that is a matter of the suite, which runs against Consul itself.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// Everything an agent knows.
#[derive(Debug, Default)]
struct State {
    /// What was said to register them, by id.
    services: BTreeMap<String, Value>,
    /// How many queries were answered, for tests of how often it is asked.
    queries: usize,
    /// Answered to everybody, in place of what is true.
    refusal: Option<(StatusCode, &'static str)>,
    /// Told in place of the true index.
    odd_index: Option<u64>,
    /// Whether what is to be registered is so only after somebody has asked for it in vain, and is not
    /// answered; and what that is by now.
    slow: bool,
    on_its_way: Option<Value>,
    /// Tells nothing of services, as to a token that may not see them.
    hidden: bool,
}

/// What connections share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Grows with every change.
    index: watch::Sender<u64>,
    /// Rung when something is on its way.
    slow: Notify,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            index: watch::Sender::new(1),
            slow: Notify::new(),
        })
    }

    fn changed(&self) {
        self.index.send_modify(|index| *index += 1);
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes);
        let body = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or(Value::Null);
        let path: Vec<String> = head
            .uri
            .path()
            .split('/')
            .skip(1)
            .map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned())
            .collect();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let query = head.uri.query().unwrap_or_default();
        let query: HashMap<&str, &str> =
            query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        if let Some((status, words)) = self.state.lock().refusal {
            return plain(status, words);
        }
        match (&head.method, &path[..]) {
            (&Method::PUT, ["v1", "agent", "service", "register"]) => {
                if self.state.lock().slow {
                    self.state.lock().on_its_way = Some(body);
                    self.slow.notify_one();
                    std::future::pending::<()>().await;
                    return plain(StatusCode::OK, "");
                }
                self.register(body)
            }
            (&Method::PUT, ["v1", "agent", "check", "pass", id]) => self.pass(id),
            (&Method::GET, ["v1", "agent", "service", id]) => {
                if let Some(service) = self.state.lock().services.get(*id) {
                    return told(&described(service), 0);
                }
                let late = self.state.lock().on_its_way.take();
                if let Some(said) = late {
                    self.register(said);
                }
                plain(StatusCode::NOT_FOUND, "unknown service ID")
            }
            (&Method::PUT, ["v1", "agent", "service", "deregister", id]) => {
                let removed = self.state.lock().services.remove(*id);
                if removed.is_none() {
                    return plain(StatusCode::NOT_FOUND, "Unknown service ID");
                }
                self.changed();
                plain(StatusCode::OK, "")
            }
            (&Method::GET, ["v1", "health", "service", name]) => self.health(name, &query).await,
            _ => plain(StatusCode::NOT_FOUND, "no such path"),
        }
    }

    fn register(&self, said: Value) -> Response<Full<Bytes>> {
        let Some(id) = said["ID"].as_str().map(str::to_owned) else {
            return plain(StatusCode::BAD_REQUEST, "Missing service ID");
        };
        self.state.lock().services.insert(id, said);
        self.changed();
        plain(StatusCode::OK, "")
    }

    fn pass(&self, check: &str) -> Response<Full<Bytes>> {
        let state = self.state.lock();
        let known = state.services.values().any(|said| said["Check"]["CheckID"] == check);
        if known {
            plain(StatusCode::OK, "")
        } else {
            plain(StatusCode::NOT_FOUND, "Unknown check ID")
        }
    }

    async fn health(&self, name: &str, query: &HashMap<&str, &str>) -> Response<Full<Bytes>> {
        let asked: u64 = query.get("index").and_then(|index| index.parse().ok()).unwrap_or(0);
        let wait = query.get("wait").and_then(|wait| wait.strip_suffix("ms")?.parse().ok());
        let wait = wait.map_or(Duration::from_secs(300), Duration::from_millis);
        let mut index = self.index.subscribe();
        if asked > 0 {
            let _ = timeout(wait, index.wait_for(|index| *index > asked)).await;
        }
        let mut state = self.state.lock();
        state.queries += 1;
        let instances: Vec<Value> = state
            .services
            .values()
            .filter(|_| !state.hidden)
            .filter(|one| one["Name"].as_str().is_some_and(|n| n.eq_ignore_ascii_case(name)))
            .map(|one| {
                json!({"Node": {"Node": "n", "Address": "127.0.0.1"}, "Service": described(one)})
            })
            .collect();
        let index = state.odd_index.unwrap_or(*self.index.borrow());
        let mut answer = told(&Value::Array(instances), index);
        if state.hidden {
            let header = "x-consul-results-filtered-by-acls";
            answer.headers_mut().insert(header, hyper::header::HeaderValue::from_static("true"));
        }
        answer
    }
}

/// A service as the agent tells it.
fn described(said: &Value) -> Value {
    json!({
        "ID": said["ID"], "Service": said["Name"], "Address": said["Address"],
        "Port": said["Port"], "Meta": said["Meta"], "Weights": said["Weights"], "Tags": [],
    })
}

fn told(value: &Value, index: u64) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(value.to_string()));
    answer.headers_mut().insert("x-consul-index", index.into());
    answer
}

fn plain(status: StatusCode, words: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(words));
    *answer.status_mut() = status;
    answer
}

/// The agent. It ends with the runtime of its test.
#[derive(Debug)]
pub(crate) struct Agent {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Agent {
    /// Starts one that knows nothing.
    pub(crate) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let shared = Shared::new();
        let agent = Self { address, shared: Arc::clone(&shared) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                let answer = service_fn(move |request| {
                    let shared = Arc::clone(&shared);
                    async move { Ok::<_, Infallible>(shared.answer(request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer);
                tokio::spawn(connection);
            }
        });
        agent
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many queries for instances were answered.
    pub(crate) fn queries(&self) -> usize {
        self.shared.state.lock().queries
    }

    /// Answers everybody with this, or again with what is true.
    pub(crate) fn refuse(&self, refusal: Option<(StatusCode, &'static str)>) {
        self.shared.state.lock().refusal = refusal;
    }

    /// Answers nobody who registers, and does what was said when somebody has asked for it in vain.
    pub(crate) fn be_slow(&self) {
        self.shared.state.lock().slow = true;
    }

    /// Waits until something is on its way.
    pub(crate) async fn on_its_way(&self) {
        self.shared.slow.notified().await;
    }

    /// How many services it knows.
    pub(crate) fn services(&self) -> usize {
        self.shared.state.lock().services.len()
    }

    /// Whether nothing is told of services, as to a token that may not see them.
    pub(crate) fn hide(&self, hidden: bool) {
        self.shared.state.lock().hidden = hidden;
        self.shared.changed();
    }

    /// Tells this index instead of the true one, at once to those who wait.
    pub(crate) fn tell_index(&self, index: Option<u64>) {
        self.shared.state.lock().odd_index = index;
        self.shared.changed();
    }
}
