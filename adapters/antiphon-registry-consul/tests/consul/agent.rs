//! An agent that answers as Consul's HTTP API is documented, as far as the registry uses it.
//!
//! Consul itself cannot be installed from Debian nor built from its published module, whose parts are
//! not all published. What is here follows the documentation of the API: the index of everything grows
//! with every change and is told with each answer; a query with an index waits until the index is
//! past it or its time is over; a check with a time to live that is not renewed becomes critical, and
//! takes its service out of what passes; names of services do not tell upper from lower case; a service
//! that is not there is answered with 404.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use antiphon_testing::conformance::registry::RegistryServer;
use antiphon_testing::proxy::{Faults, Proxy, Way};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

/// Everything an agent knows.
#[derive(Debug, Default)]
struct State {
    services: BTreeMap<String, Service>,
    /// How many queries were answered, for tests of how often it is asked.
    queries: usize,
    /// Answered to everybody, in place of what is true.
    refusal: Option<(StatusCode, &'static str)>,
    /// Told in place of the true index.
    odd_index: Option<u64>,
}

#[derive(Debug)]
struct Service {
    said: Value,
    ttl: Duration,
    passing_until: Instant,
    passing: bool,
}

/// What connections share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Grows with every change.
    index: watch::Sender<u64>,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), index: watch::Sender::new(1) })
    }

    fn changed(&self) {
        self.index.send_modify(|index| *index += 1);
    }

    /// Makes checks critical that were not renewed.
    async fn expire(&self) {
        let mut index = self.index.subscribe();
        loop {
            let next = {
                let mut state = self.state.lock();
                let now = Instant::now();
                let mut expired = false;
                for service in state.services.values_mut().filter(|service| service.passing) {
                    if service.passing_until <= now {
                        service.passing = false;
                        expired = true;
                    }
                }
                let next = state.services.values().filter(|service| service.passing);
                let next = next.map(|service| service.passing_until).min();
                drop(state);
                if expired {
                    self.changed();
                }
                next
            };
            index.mark_unchanged();
            tokio::select! {
                () = sleep_until(next.unwrap_or_else(|| Instant::now() + Duration::from_secs(1))) => {}
                _ = index.changed() => {}
            }
        }
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
            (&Method::PUT, ["v1", "agent", "service", "register"]) => self.register(body),
            (&Method::PUT, ["v1", "agent", "check", "pass", id]) => self.pass(id),
            (&Method::GET, ["v1", "agent", "service", id]) => {
                match self.state.lock().services.get(*id) {
                    Some(service) => told(&described(service), 0),
                    None => plain(StatusCode::NOT_FOUND, "unknown service ID"),
                }
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
        let ttl = said["Check"]["TTL"].as_str().and_then(|ttl| ttl.strip_suffix("ms"));
        let Some(ttl) = ttl.and_then(|ttl| ttl.parse().ok()).map(Duration::from_millis) else {
            return plain(StatusCode::BAD_REQUEST, "TTL must be > 0 for TTL checks");
        };
        let passing = said["Check"]["Status"] == "passing";
        let passing_until = Instant::now() + ttl;
        let service = Service { said, ttl, passing_until, passing };
        self.state.lock().services.insert(id, service);
        self.changed();
        plain(StatusCode::OK, "")
    }

    fn pass(&self, check: &str) -> Response<Full<Bytes>> {
        let mut state = self.state.lock();
        let found = state.services.values_mut().find(|one| one.said["Check"]["CheckID"] == check);
        let Some(service) = found else {
            return plain(StatusCode::NOT_FOUND, "Unknown check ID");
        };
        service.passing_until = Instant::now() + service.ttl;
        let back = !std::mem::replace(&mut service.passing, true);
        drop(state);
        if back {
            self.changed();
        }
        plain(StatusCode::OK, "")
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
        let only_passing = query.contains_key("passing");
        let instances: Vec<Value> = state
            .services
            .values()
            .filter(|one| one.passing || !only_passing)
            .filter(|one| one.said["Name"].as_str().is_some_and(|n| n.eq_ignore_ascii_case(name)))
            .map(|one| {
                json!({"Node": {"Node": "n", "Address": "127.0.0.1"}, "Service": described(one)})
            })
            .collect();
        let index = state.odd_index.unwrap_or(*self.index.borrow());
        told(&Value::Array(instances), index)
    }
}

/// A service as the agent tells it.
fn described(service: &Service) -> Value {
    let said = &service.said;
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

/// The agent as a process that can be treated badly: behind a proxy, and with its data apart.
#[derive(Debug)]
pub(crate) struct Agent {
    address: SocketAddr,
    proxy: Proxy,
    shared: Mutex<Arc<Shared>>,
    running: Mutex<Option<AbortHandle>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}

impl Agent {
    /// Starts one that knows nothing.
    pub(crate) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let proxy = Proxy::in_front_of(&format!("http://{address}")).await.expect("a proxy");
        let agent =
            Self { address, proxy, shared: Mutex::new(Shared::new()), running: Mutex::default() };
        agent.serve(listener);
        agent
    }

    fn serve(&self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared.lock());
        let serve = async move {
            // What it has opened ends with it.
            let mut connections = JoinSet::new();
            let expiring = Arc::clone(&shared);
            connections.spawn(async move { expiring.expire().await });
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                let answer = service_fn(move |request| {
                    let shared = Arc::clone(&shared);
                    async move { Ok::<_, Infallible>(shared.answer(request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer);
                connections.spawn(async move {
                    let _ = connection.await;
                });
            }
        };
        *self.running.lock() = Some(tokio::spawn(serve).abort_handle());
    }

    fn end(&self) {
        if let Some(running) = self.running.lock().take() {
            running.abort();
        }
    }

    /// How many queries for instances were answered.
    pub(crate) fn queries(&self) -> usize {
        self.shared.lock().state.lock().queries
    }

    /// Answers everybody with this, or again with what is true.
    pub(crate) fn refuse(&self, refusal: Option<(StatusCode, &'static str)>) {
        self.shared.lock().state.lock().refusal = refusal;
    }

    /// Tells this index instead of the true one, at once to those who wait.
    pub(crate) fn tell_index(&self, index: Option<u64>) {
        let shared = self.shared.lock();
        shared.state.lock().odd_index = index;
        shared.changed();
    }

    /// Registers what some other program would.
    pub(crate) fn register(&self, said: Value) {
        let answer = self.shared.lock().register(said);
        assert_eq!(answer.status(), StatusCode::OK);
    }
}

impl RegistryServer for Agent {
    fn url(&self) -> String {
        self.proxy.url().to_owned()
    }

    async fn stop(&self) {
        self.end();
        self.proxy.reset();
    }

    async fn forget(&self) {
        self.stop().await;
        *self.shared.lock() = Shared::new();
    }

    async fn start_again(&self) {
        // The port is ours since the first start; what is left of old connections does not matter.
        let listener = loop {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.set_reuseaddr(true).expect("an option");
            if socket.bind(self.address).is_ok() {
                break socket.listen(128).expect("it listens");
            }
            tokio::task::yield_now().await;
        };
        self.serve(listener);
    }

    async fn pause(&self) {
        self.proxy.set(Faults::both(Way { hold: true, ..Way::default() }));
    }

    async fn resume(&self) {
        self.proxy.heal();
    }
}

/// An agent that all tests share, on a thread of its own: it outlives the runtime of each of them.
pub(crate) fn shared() -> String {
    static URL: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let url = URL.get_or_init(|| {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let agent = Agent::new().await;
                sender.send(agent.url()).expect("somebody waits");
                std::future::pending::<()>().await;
            });
        });
        receiver.recv().expect("the agent starts")
    });
    url.clone()
}
