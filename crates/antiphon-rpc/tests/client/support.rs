//! Instances of a service that can be told how to behave, and a network before each that can be cut.

mod clock;
mod gate;
mod load;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use antiphon_core::{BoxFuture, Code, Component, Context, Health, Retry, ShutdownHandle, Status};
use antiphon_discovery::{Discovery, Settings as DiscoverySettings};
use antiphon_rpc::client::{Channel, ClientSettings};
use antiphon_rpc::server::{Server, ServerSettings};
use antiphon_rpc::{
    Codec, Encoded, Idempotency, MethodInfo, MethodKind, Service, ServiceInfo, Streaming,
};
use antiphon_telemetry::Telemetry;
use buffa::Message;
use buffa_types::google::protobuf::StringValue;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub(crate) use clock::{Clock, breathe, moving};
pub(crate) use gate::Gate;
pub(crate) use load::Load;

const fn method(name: &'static str, path: &'static str, kind: MethodKind) -> MethodInfo {
    let idempotency = match name.as_bytes() {
        b"Put" => Idempotency::Unknown,
        _ => Idempotency::NoSideEffects,
    };
    MethodInfo {
        service: "t.v1.Fleet",
        name,
        path,
        kind,
        idempotency,
        timeout: None,
        retry: false,
        hedge: false,
    }
}

static METHODS: [MethodInfo; 5] = [
    method("Get", "/t.v1.Fleet/Get", MethodKind::Unary),
    method("Put", "/t.v1.Fleet/Put", MethodKind::Unary),
    method("Context", "/t.v1.Fleet/Context", MethodKind::Unary),
    method("Count", "/t.v1.Fleet/Count", MethodKind::ServerStream),
    method("Echo", "/t.v1.Fleet/Echo", MethodKind::Bidi),
];
pub(crate) static GET: &MethodInfo = &METHODS[0];
pub(crate) static PUT: &MethodInfo = &METHODS[1];
pub(crate) static CONTEXT: &MethodInfo = &METHODS[2];
pub(crate) static COUNT: &MethodInfo = &METHODS[3];
pub(crate) static ECHO: &MethodInfo = &METHODS[4];

fn info() -> &'static ServiceInfo {
    static INFO: OnceLock<ServiceInfo> = OnceLock::new();
    INFO.get_or_init(|| {
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client/support");
        let mut compiler = protox::Compiler::new([here]).unwrap();
        compiler.include_imports(true).open_file("fleet.proto").unwrap();
        let descriptor_set = compiler.encode_file_descriptor_set().leak();
        ServiceInfo { name: "t.v1.Fleet", methods: &METHODS, descriptor_set }
    })
}

/// How an instance behaves, and what it has seen.
#[derive(Debug, Default)]
pub(crate) struct Behaviour {
    name: Mutex<String>,
    /// How long each call takes, in microseconds.
    pub(crate) delay_micros: AtomicU64,
    /// The status that each call is answered with; streams after their first answer.
    pub(crate) failure: Mutex<Option<Status>>,
    /// Whether streams fail before their first answer.
    pub(crate) fails_at_once: AtomicBool,
    /// Handlers that began.
    pub(crate) begun: AtomicUsize,
    /// Handlers that were dropped before they ended.
    pub(crate) dropped: AtomicUsize,
    /// When the last of those was.
    pub(crate) dropped_at: Mutex<Option<Instant>>,
    /// Whom a handler asks before it answers.
    pub(crate) next: Mutex<Option<Channel>>,
}

impl Behaviour {
    pub(crate) fn fail_with(&self, status: Option<Status>) {
        *self.failure.lock() = status;
    }

    fn failure(&self) -> Option<Status> {
        let failure = self.failure.lock();
        let status = failure.as_ref()?;
        let copy = Status::new(status.code(), status.message().to_owned())
            .with_reason(status.reason().to_owned(), status.domain().to_owned());
        Some(match status.retry_said() {
            Some(retry) => copy.with_retry(retry),
            None => copy,
        })
    }

    pub(crate) fn delay(&self, delay: Duration) {
        self.delay_micros.store(u64::try_from(delay.as_micros()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) fn calls(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }
}

struct Counted<'a>(&'a Behaviour, bool);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if !self.1 {
            *self.0.dropped_at.lock() = Some(Instant::now());
            self.0.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[derive(Debug, Clone)]
struct Instance(Arc<Behaviour>);

impl Service for Instance {
    fn info(&self) -> &'static ServiceInfo {
        info()
    }

    fn unary(
        &self,
        method: usize,
        _: Bytes,
        _: Codec,
    ) -> BoxFuture<'static, Result<Encoded, Status>> {
        let behaviour = Arc::clone(&self.0);
        Box::pin(async move {
            behaviour.begun.fetch_add(1, Ordering::SeqCst);
            let mut counted = Counted(&behaviour, false);
            let delay = Duration::from_micros(behaviour.delay_micros.load(Ordering::SeqCst));
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let next = behaviour.next.lock().clone();
            if let Some(next) = next {
                Box::pin(call(&next, GET)).await?;
            }
            counted.1 = true;
            if let Some(status) = behaviour.failure() {
                return Err(status);
            }
            let context = Context::current();
            encode(&match method {
                2 => format!(
                    "{} {} {}",
                    context.previous_attempts(),
                    context.remaining().unwrap_or_default().as_millis(),
                    context.priority().name(),
                ),
                _ => behaviour.name.lock().clone(),
            })
        })
    }

    fn stream(
        &self,
        method: usize,
        requests: Streaming<Bytes>,
        _: Codec,
    ) -> BoxFuture<'static, Result<Streaming<Encoded>, Status>> {
        let behaviour = Arc::clone(&self.0);
        Box::pin(async move {
            behaviour.begun.fetch_add(1, Ordering::SeqCst);
            if behaviour.fails_at_once.load(Ordering::SeqCst)
                && let Some(status) = behaviour.failure()
            {
                return Err(status);
            }
            if method == 4 {
                return Ok(Streaming::new(requests.map(|request| {
                    let request = StringValue::decode_from_slice(&request?);
                    encode(&request.map_err(Status::internal)?.value)
                })));
            }
            let numbers = stream::iter(0_u64..).then(move |number| {
                let failure = if number > 0 { behaviour.failure() } else { None };
                async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    failure.map_or_else(|| encode(&number.to_string()), Err)
                }
            });
            Ok(Streaming::new(numbers))
        })
    }
}

fn encode(text: &str) -> Result<Encoded, Status> {
    let message = StringValue { value: text.into(), ..Default::default() };
    Encoded::build(text.len() + 8, |buffer| {
        buffer.extend_from_slice(&message.encode_to_vec());
        Ok(())
    })
}

/// A running instance.
pub(crate) struct Running {
    pub(crate) behaviour: Arc<Behaviour>,
    pub(crate) shutdown: ShutdownHandle,
    pub(crate) ended: JoinHandle<()>,
    /// Where it really is.
    pub(crate) address: SocketAddr,
    /// Where the client finds it.
    pub(crate) gate: Gate,
}

/// Settings for tests: any port, one worker.
pub(crate) fn server_settings() -> ServerSettings {
    ServerSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        workers: 1,
        ..ServerSettings::default()
    }
}

pub(crate) async fn start(name: &str, settings: ServerSettings) -> Running {
    let behaviour = Arc::new(Behaviour { name: Mutex::new(name.into()), ..Behaviour::default() });
    let (address, shutdown, ended) = serve(Arc::clone(&behaviour), settings).await;
    let gate = Gate::open(address);
    Running { behaviour, shutdown, ended, address, gate }
}

async fn serve(
    behaviour: Arc<Behaviour>,
    settings: ServerSettings,
) -> (SocketAddr, ShutdownHandle, JoinHandle<()>) {
    let service: Arc<dyn Service> = Arc::new(Instance(behaviour));
    let (telemetry, health) = (Telemetry::new(), Health::new());
    let server = Server::bind(vec![service], settings, &telemetry, &health).await.unwrap();
    let address = server.address();
    let (shutdown, signal) = ShutdownHandle::new();
    let ended = tokio::spawn(async move { server.run(signal).await.unwrap() });
    (address, shutdown, ended)
}

impl Running {
    /// Drains, ends, and comes back as another process at the same place.
    pub(crate) async fn restart(&mut self) {
        self.gate.close();
        self.shutdown.drain(Duration::from_secs(5));
        soon(&mut self.ended).await.unwrap();
        let settings = server_settings();
        let (address, shutdown, ended) = serve(Arc::clone(&self.behaviour), settings).await;
        self.gate.lead_to(address);
        self.gate.revive();
        (self.address, self.shutdown, self.ended) = (address, shutdown, ended);
    }
}

/// Several instances and a channel to them.
pub(crate) struct Fleet {
    pub(crate) instances: Vec<Running>,
    pub(crate) channel: Channel,
    pub(crate) telemetry: Telemetry,
}

impl Fleet {
    pub(crate) async fn start(size: usize, settings: ClientSettings) -> Self {
        Self::start_with(size, settings, server_settings()).await
    }

    pub(crate) async fn start_with(
        size: usize,
        settings: ClientSettings,
        server: ServerSettings,
    ) -> Self {
        let mut instances = Vec::new();
        for number in 0..size {
            instances.push(start(&format!("i-{number}"), server.clone()).await);
        }
        Self::of(instances, settings)
    }

    /// These instances.
    pub(crate) fn of(instances: Vec<Running>, settings: ClientSettings) -> Self {
        let list: Vec<_> = instances.iter().map(|one| one.gate.address().to_string()).collect();
        let telemetry = Telemetry::new();
        let channel = channel(&format!("static:{}", list.join(",")), settings, &telemetry);
        Self { instances, channel, telemetry }
    }

    pub(crate) async fn call(&self, method: &'static MethodInfo) -> Result<String, Status> {
        call(&self.channel, method).await
    }

    pub(crate) fn metrics(&self) -> String {
        self.telemetry.metrics(antiphon_telemetry::metrics::Exposition::OpenMetrics)
    }

    /// How many attempts ended so: `accepted`, `failed`, `shed` or `neutral`.
    pub(crate) fn attempts(&self, outcome: &str) -> u64 {
        self.count("rpc_client_attempts_total", &format!("outcome=\"{outcome}\""))
    }

    /// The sum of a counter, of the series with this label.
    pub(crate) fn count(&self, name: &str, label: &str) -> u64 {
        let metrics = self.metrics();
        let lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains(label));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

pub(crate) fn channel(target: &str, settings: ClientSettings, telemetry: &Telemetry) -> Channel {
    let discovery = Discovery::new(DiscoverySettings::default());
    Channel::new(&target.parse().unwrap(), settings, &discovery, telemetry).unwrap()
}

pub(crate) async fn call(channel: &Channel, method: &'static MethodInfo) -> Result<String, Status> {
    let answer: StringValue = channel.unary(method, StringValue::default()).await?;
    Ok(answer.value)
}

/// A status that servers answer when they cannot take a call now.
pub(crate) fn unavailable(retry: Option<Retry>) -> Status {
    let status = Status::new(Code::Unavailable, "not now");
    match retry {
        Some(retry) => status.with_retry(retry),
        None => status,
    }
}

/// Waits for something that happens soon.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("should happen soon")
}

/// Waits until something is so.
pub(crate) async fn until(mut is_so: impl FnMut() -> bool) {
    soon(async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
