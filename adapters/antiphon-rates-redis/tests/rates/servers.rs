//! Servers that share a limit.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use antiphon_core::{BoxFuture, Component, Health, ShutdownHandle, Status};
use antiphon_rates_redis::{RedisRates, Settings};
use antiphon_resilience::{RateSettings, RateStore};
use antiphon_rpc::server::{HeaderName, RateRule, RateSharing, Server, ServerSettings};
use antiphon_rpc::{
    Codec, Encoded, Idempotency, MethodInfo, MethodKind, Service, ServiceInfo, Streaming,
};
use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::Exposition;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::common::{connected, settings, until};

/// Answers with what it is asked.
struct Echo;

static METHODS: [MethodInfo; 1] = [MethodInfo {
    service: "t.v1.Echo",
    name: "Echo",
    path: "/t.v1.Echo/Echo",
    kind: MethodKind::Unary,
    idempotency: Idempotency::Unknown,
    timeout: None,
    retry: false,
    hedge: false,
}];

impl Service for Echo {
    fn info(&self) -> &'static ServiceInfo {
        static INFO: OnceLock<ServiceInfo> = OnceLock::new();
        INFO.get_or_init(|| {
            let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rates");
            let mut compiler = protox::Compiler::new([here]).expect("a folder");
            compiler.include_imports(true).open_file("echo.proto").expect("a contract");
            let descriptor_set = compiler.encode_file_descriptor_set().leak();
            ServiceInfo { name: "t.v1.Echo", methods: &METHODS, descriptor_set }
        })
    }

    fn unary(
        &self,
        _: usize,
        request: Bytes,
        _: Codec,
    ) -> BoxFuture<'static, Result<Encoded, Status>> {
        Box::pin(async move {
            Encoded::build(request.len(), |buffer| {
                buffer.extend_from_slice(&request);
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
        Box::pin(async { Err(Status::unimplemented("unary only")) })
    }
}

/// A server with its store.
pub(crate) struct Running {
    pub(crate) store: Arc<RedisRates>,
    pub(crate) address: SocketAddr,
    telemetry: Telemetry,
    _shutdown: ShutdownHandle,
}

impl Running {
    /// Whether it keeps the limits alone.
    pub(crate) fn is_alone(&self) -> bool {
        let metrics = self.telemetry.metrics(Exposition::OpenMetrics);
        metrics.contains("rpc_server_rates_alone 1\n")
    }
}

/// A server over this Redis server, once it is connected.
pub(crate) async fn serve(redis: &Settings, rule: RateRule, timeout: Duration) -> Running {
    let store = connected(redis).await;
    let shared: Arc<dyn RateStore> = Arc::<RedisRates>::clone(&store);
    let settings = ServerSettings {
        listen: "127.0.0.1:0".parse().expect("an address"),
        workers: 1,
        client_header: Some(HeaderName::from_static("x-tenant")),
        rate_limits: [("t.v1.Echo/Echo".to_owned(), rule)].into(),
        rate_sharing: Some(RateSharing::new(shared, timeout)),
        ..ServerSettings::default()
    };
    let telemetry = Telemetry::new();
    let server = Server::bind(vec![Arc::new(Echo)], settings, &telemetry, &Health::new()).await;
    let server = server.expect("a server");
    let (address, (handle, shutdown)) = (server.address(), ShutdownHandle::new());
    tokio::spawn(server.run(shutdown));
    Running { store, address, telemetry, _shutdown: handle }
}

/// A call over HTTP/1.1: its status.
pub(crate) async fn call(address: SocketAddr, tenant: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.expect("it connects");
    let request = format!(
        "POST /t.v1.Echo/Echo HTTP/1.1\r\nhost: t\r\nx-tenant: {tenant}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await.expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}

/// Calls to these servers in turn, all at once: how many are let in. All others are refused.
pub(crate) async fn at_once(addresses: &[SocketAddr], calls: usize, tenant: &'static str) -> usize {
    let mut all = JoinSet::new();
    for n in 0..calls {
        all.spawn(call(addresses[n % addresses.len()], tenant));
    }
    let statuses = all.join_all().await;
    assert!(statuses.iter().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
    statuses.into_iter().filter(|status| *status == 200).count()
}

/// So many at once, and no more while a test lasts.
pub(crate) fn burst(burst: u32, per_client: bool) -> RateRule {
    RateRule { rate: RateSettings { per_second: 0.001, burst }, per_client, shared: true }
}

/// What other tests do to this machine must not look like a server that is away.
pub(crate) const PATIENT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn two_servers_let_in_together_what_the_limit_says() {
    let redis = settings();
    let one = serve(&redis, burst(20, false), PATIENT).await;
    let two = serve(&redis, burst(20, false), PATIENT).await;
    let both = [one.address, two.address];
    assert_eq!(at_once(&both, 60, "any").await, 20);
    assert_eq!(at_once(&both, 60, "other").await, 0);
    assert!(!one.is_alone() && !two.is_alone());
}

#[tokio::test]
async fn each_client_has_the_limit_at_all_servers_together() {
    let redis = settings();
    let one = serve(&redis, burst(10, true), PATIENT).await;
    let two = serve(&redis, burst(10, true), PATIENT).await;
    let both = [one.address, two.address];
    for tenant in ["one", "other"] {
        assert_eq!(at_once(&both, 40, tenant).await, 10, "{tenant}");
    }
}

/// Within any time the rate, what it gives in the time that a batch is good for, and the burst.
#[tokio::test]
async fn a_flood_at_two_servers_gets_the_rate() {
    let redis = settings();
    let rate = RateSettings { per_second: 50.0, burst: 10 };
    let rule = RateRule { rate, per_client: false, shared: true };
    let (one, two) = (serve(&redis, rule, PATIENT).await, serve(&redis, rule, PATIENT).await);
    let begun = tokio::time::Instant::now();
    let mut let_in = 0;
    while begun.elapsed() < Duration::from_secs(1) {
        let_in += at_once(&[one.address, two.address], 8, "any").await;
    }
    let most = 10.0 + 50.0 * (begun.elapsed().as_secs_f64() + 0.1);
    assert!(let_in as f64 <= most + 1.0, "{let_in} of {most}");
    assert!(let_in > 10, "there is more than the burst in time: {let_in}");
    until("they are not alone", || !one.is_alone() && !two.is_alone()).await;
}
