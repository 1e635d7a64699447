//! What the client's stack costs: discovery, balancing, budget, throttle, bulkhead, deadline, metrics
//! and tracing around a call, against connectrpc's bare client over one connection. And what balancing
//! is worth where one of five instances is slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use antiphon_core::{BoxError, Component, Context, Health, ShutdownHandle, Status};
use antiphon_resilience::balance::Policy;
use antiphon_rpc::Service;
use antiphon_rpc::client::{Channel, Client, ClientSettings, Discovery};
use antiphon_rpc::server::{Server as RpcServer, ServerSettings};
use antiphon_telemetry::Telemetry;
use connectrpc::Protocol;
use connectrpc::client::{CallOptions, ClientConfig, Http2Connection};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::Options;
use crate::contract::bench::v1::{EchoMessage, EchoService, EchoServiceClient, EchoServiceServer};
use crate::echo::connectrpc_contract::bench::v1 as bare;
use crate::process::{Server, cpu_of, pin_load};
use crate::report::{median, progress, table};

/// Calls at once, as a busy service makes them.
const STREAMS: u32 = 16;
const CALLS: u32 = 20_000;
const TEXT: usize = 64;

/// Both parts.
pub(crate) fn run(options: &Options) -> Result<(), BoxError> {
    stack(options)?;
    tail(options)
}

/// Our client and the bare one, in turn, at the same server.
fn stack(options: &Options) -> Result<(), BoxError> {
    pin_load()?;
    let server = Server::start(&std::env::current_exe()?, &["serve", "antiphon"])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    runtime.block_on(async {
        let uri: http::Uri = format!("http://{}", server.address).parse()?;
        let connection = Http2Connection::connect_plaintext(uri.clone()).await?.shared(1_024);
        let config = ClientConfig::new(uri).with_protocol(Protocol::Grpc);
        let bare_client = bare::EchoServiceClient::new(connection, config);
        let client = client(&format!("static:{}", server.address), ClientSettings::default())?;
        for round in 0..=options.rounds {
            progress(&format!("client stack: round {round}"));
            let of_ours = measure(|_| async { client.echo(message()).await.map(drop) }).await?;
            let of_bare = measure(|_| async {
                let request = bare::EchoMessage {
                    id: 150,
                    name: "echo".into(),
                    text: "x".repeat(TEXT),
                    ..Default::default()
                };
                let options = CallOptions::default().with_timeout(Duration::from_secs(10));
                let answer = bare_client.echo_with_options(request, options).await;
                answer.map(|answer| drop(answer.into_owned()))
            })
            .await?;
            // The first round warms up.
            if round > 0 {
                ours.push(of_ours);
                bare.push(of_bare);
            }
        }
        Ok::<_, BoxError>(())
    })?;
    let rows = [("antiphon, all of its stack", &mut ours), ("connectrpc, bare", &mut bare)]
        .map(|(name, figures)| vec![name.to_owned(), format!("{:.1}", median(figures))]);
    let title = format!("The client's stack: unary gRPC, {TEXT} B, {STREAMS} calls at once");
    table(&title, &["client", "CPU µs per call"], &rows);
    Ok(())
}

/// CPU time per call of this process.
async fn measure<E, F>(call: impl Fn(u32) -> F) -> Result<f64, BoxError>
where
    F: Future<Output = Result<(), E>>,
    BoxError: From<E>,
{
    let own = std::process::id();
    let before = cpu_of(own)?;
    let lanes = (0..STREAMS).map(|lane| {
        let call = &call;
        async move {
            for _ in 0..CALLS / STREAMS {
                call(lane).await?;
            }
            Ok::<_, E>(())
        }
    });
    for done in join_all(lanes).await {
        done?;
    }
    Ok(cpu_of(own)?.saturating_sub(before).as_secs_f64() * 1e6 / f64::from(CALLS))
}

fn message() -> EchoMessage {
    EchoMessage { id: 150, name: "echo".into(), text: "x".repeat(TEXT), ..Default::default() }
}

fn client(target: &str, settings: ClientSettings) -> Result<EchoServiceClient, BoxError> {
    let telemetry = Telemetry::new();
    let discovery = Discovery::new(antiphon_discovery::Settings::default());
    let target = target.parse()?;
    let channel =
        Channel::to_service(&target, EchoServiceClient::info(), settings, &discovery, &telemetry)?;
    Ok(EchoServiceClient::over(channel))
}

/// How long a healthy instance takes, and how much slower the slow one is.
const WORK: Duration = Duration::from_millis(2);
const SLOWER: u32 = 20;
const INSTANCES: usize = 5;
const PER_SECOND: u32 = 1_000;
const SECONDS: u32 = 15;

/// Answers after a while, and counts.
struct Slow {
    work: Duration,
    calls: Arc<AtomicU32>,
}

impl EchoService for Slow {
    async fn echo(&self, request: EchoMessage) -> Result<EchoMessage, Status> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.work).await;
        Ok(request)
    }
}

/// What was seen of a policy, round by round.
#[derive(Default)]
struct Tail {
    /// Of the p99.9 without a slow instance, and with one, in milliseconds.
    without: Vec<f64>,
    with: Vec<f64>,
    /// Of the calls that the slow one got, in a thousand.
    slow: Vec<f64>,
}

/// The slowest calls with and without a slow instance, for two policies in turns.
fn tail(options: &Options) -> Result<(), BoxError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let policies = [("peak EWMA of two", Policy::PeakEwma), ("round robin", Policy::RoundRobin)];
    let mut tails = policies.map(|_| Tail::default());
    for round in 1..=options.rounds {
        for ((name, policy), tail) in policies.into_iter().zip(&mut tails) {
            progress(&format!("slow instance: {name}, round {round}"));
            tail.without.push(runtime.block_on(open_loop(policy, false))?.0);
            let (p999, calls) = runtime.block_on(open_loop(policy, true))?;
            tail.with.push(p999);
            tail.slow.push(f64::from(calls) * 1e3 / f64::from(PER_SECOND * SECONDS));
        }
    }
    let title = format!(
        "One of {INSTANCES} instances {SLOWER}× slower than {WORK:?}, {PER_SECOND} calls/s, open loop"
    );
    let head = [
        "policy",
        "p99.9 without, ms",
        "p99.9 with, ms",
        "with ÷ without",
        "of 1000 calls to the slow one",
    ];
    let rows = policies.iter().zip(&mut tails).map(|((name, _), tail)| {
        let (without, with) = (median(&mut tail.without), median(&mut tail.with));
        vec![
            (*name).to_owned(),
            format!("{without:.1}"),
            format!("{with:.1}"),
            format!("{:.2}", with / without),
            format!("{:.2}", median(&mut tail.slow)),
        ]
    });
    table(&title, &head, &rows.collect::<Vec<_>>());
    Ok(())
}

/// The p99.9 in milliseconds, and how many calls the first instance got.
async fn open_loop(policy: Policy, slow: bool) -> Result<(f64, u32), BoxError> {
    let mut addresses = Vec::new();
    let mut handles = Vec::new();
    let counters: Vec<_> = (0..INSTANCES).map(|_| Arc::new(AtomicU32::new(0))).collect();
    for (number, calls) in counters.iter().enumerate() {
        let work = if slow && number == 0 { WORK * SLOWER } else { WORK };
        let calls = Arc::clone(calls);
        let service: Arc<dyn Service> = Arc::new(EchoServiceServer::new(Slow { work, calls }));
        let settings =
            ServerSettings { listen: "127.0.0.1:0".parse()?, workers: 1, ..Default::default() };
        let server =
            RpcServer::bind(vec![service], settings, &Telemetry::new(), &Health::new()).await?;
        addresses.push(server.address().to_string());
        let (handle, shutdown) = ShutdownHandle::new();
        tokio::spawn(async move { server.run(shutdown).await });
        handles.push(handle);
    }
    let mut settings = ClientSettings::default();
    settings.balance.policy = policy;
    let client = client(&format!("static:{}", addresses.join(",")), settings)?;
    // What is not known yet is not what is measured.
    for _ in 0..500 {
        client.echo(message()).await?;
    }
    counters.iter().for_each(|calls| calls.store(0, Ordering::Relaxed));
    let begun = Instant::now();
    let mut calls = Vec::new();
    for number in 0..PER_SECOND * SECONDS {
        let due = begun + Duration::from_secs(1) * number / PER_SECOND;
        tokio::time::sleep_until(due).await;
        let client = client.clone();
        calls.push(tokio::spawn(Context::root().scope(async move {
            client.echo(message()).await.map(|_| due.elapsed().as_secs_f64() * 1e3)
        })));
    }
    let mut times = Vec::new();
    for call in calls {
        times.push(call.await??);
    }
    for handle in handles {
        handle.cut();
    }
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() * 999 / 1_000], counters[0].load(Ordering::Relaxed)))
}
