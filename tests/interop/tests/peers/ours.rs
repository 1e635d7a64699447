//! Our client and our server of the contract.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use antiphon_core::{BoxFuture, Component, Context, Health, Retry, ShutdownHandle, Status};
use antiphon_discovery::{Discovery, Settings as DiscoverySettings};
use antiphon_rpc::client::{Channel, ClientSettings};
use antiphon_rpc::server::{Server, ServerSettings};
use antiphon_rpc::{Codec, Encoded, MethodInfo, Service, ServiceInfo, Streaming};
use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::Exposition;
use buffa::Message;
use buffa_types::google::protobuf::StringValue;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::contract::{Answer, Ask, LOOK, Seen, info};
use crate::{soon, until};

/// Our client.
pub(crate) struct Ours {
    pub(crate) channel: Channel,
    telemetry: Telemetry,
}

impl Ours {
    pub(crate) fn new(addresses: &[SocketAddr], settings: ClientSettings) -> Self {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let target = format!("static:{}", addresses.join(",")).parse().unwrap();
        let telemetry = Telemetry::new();
        let discovery = Discovery::new(DiscoverySettings::default());
        let channel = Channel::new(&target, settings, &discovery, &telemetry).unwrap();
        Self { channel, telemetry }
    }

    pub(crate) async fn call(
        &self,
        method: &'static MethodInfo,
        ask: &Ask,
    ) -> Result<Answer, Status> {
        call(&self.channel, method, ask).await
    }

    /// What the server has seen of an id.
    pub(crate) async fn seen(&self, id: &str) -> Seen {
        let answer: StringValue = self.channel.unary(LOOK, text(id)).await.unwrap();
        serde_json::from_str(&answer.value).unwrap()
    }

    pub(crate) fn metrics(&self) -> String {
        self.telemetry.metrics(Exposition::OpenMetrics)
    }

    /// Calls again and again, so many at once, until it is stopped.
    pub(crate) fn load(&self, method: &'static MethodInfo, ask: &Ask, tasks: usize) -> Load {
        let mut load = Load {
            stop: Arc::default(),
            answered: Arc::default(),
            failed: Arc::default(),
            tasks: JoinSet::new(),
        };
        for _ in 0..tasks {
            let (channel, ask) = (self.channel.clone(), ask.clone());
            let (stop, answered) = (Arc::clone(&load.stop), Arc::clone(&load.answered));
            let failed = Arc::clone(&load.failed);
            load.tasks.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    match call(&channel, method, &ask).await {
                        Ok(answer) => *answered.lock().entry(answer.name).or_default() += 1,
                        Err(status) => {
                            failed.lock().push(status);
                            // What fails at once must not keep everything else from running.
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                }
            });
        }
        load
    }
}

pub(crate) fn text(text: &str) -> StringValue {
    StringValue { value: text.to_owned(), ..StringValue::default() }
}

pub(crate) fn ask_of(ask: &Ask) -> StringValue {
    text(&serde_json::to_string(ask).unwrap())
}

async fn call(channel: &Channel, method: &'static MethodInfo, ask: &Ask) -> Result<Answer, Status> {
    let answer: StringValue = channel.unary(method, ask_of(ask)).await?;
    Ok(serde_json::from_str(&answer.value).unwrap())
}

/// Calls that go on in the background.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<Mutex<HashMap<String, usize>>>,
    failed: Arc<Mutex<Vec<Status>>>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Waits until a server has answered so many more calls, or so many failed that it is no use.
    pub(crate) async fn more(&self, name: &str, calls: usize) {
        let by = || self.answered.lock().get(name).copied().unwrap_or(0);
        let goal = by() + calls;
        until(async || by() >= goal || self.failed.lock().len() > 50).await;
    }

    /// Ends it; fails where a call did.
    pub(crate) async fn end_without_failure(self) {
        self.end_without_failure_but(|_| false).await;
    }

    /// The same, but some failures are nobody's fault.
    pub(crate) async fn end_without_failure_but(self, allowed: impl Fn(&Status) -> bool) {
        self.stop.store(true, Ordering::SeqCst);
        soon(self.tasks.join_all()).await;
        let mut failed = self.failed.lock();
        failed.retain(|status| !allowed(status));
        let first = failed.first().map(|status| (status, std::error::Error::source(status)));
        assert!(failed.is_empty(), "{} failed, the first: {first:?}", failed.len());
    }
}

/// What our server has seen.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    seen: Mutex<HashMap<String, Seen>>,
    /// The time that was left when the last call arrived.
    pub(crate) remaining: Mutex<Option<Duration>>,
}

impl Journal {
    pub(crate) fn of(&self, id: &str) -> Seen {
        self.seen.lock().get(id).cloned().unwrap_or_default()
    }
}

/// Our service.
#[derive(Clone, Debug)]
struct Peer {
    name: Arc<str>,
    begun: Instant,
    journal: Arc<Journal>,
}

/// Notes a handler that is dropped while it waits.
struct Waiting<'a>(&'a Journal, &'a str, bool);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.2 {
            self.0.seen.lock().entry(self.1.to_owned()).or_default().cancelled += 1;
        }
    }
}

impl Peer {
    async fn answer(&self, ask: Ask) -> Result<Answer, Status> {
        let context = Context::current();
        let remaining = context.remaining();
        *self.journal.remaining.lock() = remaining;
        let attempt = {
            let mut seen = self.journal.seen.lock();
            let at = &mut seen.entry(ask.id.clone()).or_default().at;
            at.push(self.begun.elapsed().as_secs_f64() * 1e3);
            u32::try_from(at.len()).unwrap()
        };
        if ask.waits_ms > 0 {
            let mut waiting = Waiting(&self.journal, &ask.id, false);
            tokio::time::sleep(Duration::from_millis(ask.waits_ms)).await;
            waiting.2 = true;
        }
        if attempt <= ask.fails {
            let status = Status::unavailable("not now");
            return Err(match ask.pushback.as_deref().map(str::parse) {
                None => status,
                Some(Ok(millis)) => status.with_retry(Retry::After(Duration::from_millis(millis))),
                Some(Err(_)) => status.with_retry(Retry::Never),
            });
        }
        Ok(Answer {
            name: self.name.to_string(),
            attempt,
            previous: context.previous_attempts(),
            remaining_ms: remaining.map(|remaining| remaining.as_secs_f64() * 1e3),
            padding: "x".repeat(ask.bytes),
        })
    }
}

impl Service for Peer {
    fn info(&self) -> &'static ServiceInfo {
        info()
    }

    fn unary(
        &self,
        method: usize,
        request: Bytes,
        _: Codec,
    ) -> BoxFuture<'static, Result<Encoded, Status>> {
        let peer = self.clone();
        Box::pin(async move {
            assert!(method < 2, "clients only Get and Put");
            let request = StringValue::decode_from_slice(&request).unwrap();
            let answer = peer.answer(serde_json::from_str(&request.value).unwrap()).await?;
            let answer = text(&serde_json::to_string(&answer).unwrap()).encode_to_vec();
            Encoded::build(answer.len(), |buffer| {
                buffer.extend_from_slice(&answer);
                Ok(())
            })
        })
    }

    fn stream(
        &self,
        _: usize,
        _: Streaming<Bytes>,
        _: Codec,
    ) -> BoxFuture<'static, Result<Streaming<Encoded>, Status>> {
        Box::pin(std::future::ready(Err(Status::unimplemented("clients only Get and Put"))))
    }
}

/// Our server, running.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) journal: Arc<Journal>,
    telemetry: Telemetry,
    shutdown: ShutdownHandle,
    ended: JoinHandle<()>,
}

/// Settings for tests: any port, one worker.
pub(crate) fn server_settings() -> ServerSettings {
    ServerSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        workers: 1,
        ..ServerSettings::default()
    }
}

impl Running {
    pub(crate) async fn start(name: &str, settings: ServerSettings) -> Self {
        let journal = Arc::<Journal>::default();
        let peer = Peer { name: name.into(), begun: Instant::now(), journal: Arc::clone(&journal) };
        let (telemetry, health) = (Telemetry::new(), Health::new());
        let service: Arc<dyn Service> = Arc::new(peer);
        let server = Server::bind(vec![service], settings, &telemetry, &health).await.unwrap();
        let address = server.address();
        let (shutdown, signal) = ShutdownHandle::new();
        let ended = tokio::spawn(async move { server.run(signal).await.unwrap() });
        Self { address, journal, telemetry, shutdown, ended }
    }

    pub(crate) fn metrics(&self) -> String {
        self.telemetry.metrics(Exposition::OpenMetrics)
    }

    /// Lets it leave in order.
    pub(crate) async fn leave(self) {
        self.shutdown.drain(Duration::from_secs(20));
        soon(self.ended).await.unwrap();
    }
}
