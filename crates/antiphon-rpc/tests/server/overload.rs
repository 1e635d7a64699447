//! More calls than the service can work on: who gets in, and what the others are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use antiphon_core::{Component, Health, ShutdownHandle};
use antiphon_resilience::{CpuSettings, LimitSettings};
use antiphon_rpc::server::{CpuUse, Server};
use antiphon_telemetry::Telemetry;
use http::HeaderName;
use tokio::task::JoinHandle;

use crate::support::client::{Answer, Http2};
use crate::support::{
    Running, ServerSettings, calls_in_progress, echo, in_progress, is_shed, settings, start_with,
    until,
};

/// So many calls of a method at once, and no more.
fn concurrency(calls: u32) -> LimitSettings {
    LimitSettings { initial: calls, min: calls, max: calls, ..LimitSettings::default() }
}

/// Calls that stay in progress until they are aborted.
async fn occupy(
    server: &Running,
    client: &Http2,
    calls: usize,
    headers: &'static [(&'static str, &'static str)],
) -> Vec<JoinHandle<Answer>> {
    let before = calls_in_progress(server);
    let calls: Vec<_> = (0..calls)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.grpc_with("Wait", b"60000", headers).await })
        })
        .collect();
    in_progress(server, before + calls.len()).await;
    calls
}

async fn with_priority(client: &Http2, priority: &str) -> Answer {
    client.grpc_with("Wait", b"0", &[("x-priority", priority)]).await
}

#[tokio::test]
async fn the_last_places_are_for_the_calls_that_matter_most() {
    let settings = ServerSettings { concurrency: concurrency(10), ..settings() };
    let server = start_with(settings).await;
    let client = Http2::connect(server.address).await;
    // Of ten places, probes may have five, sheddable calls seven, critical ones twelve.
    let mut free = [("probe", 5), ("sheddable", 2), ("default", 3), ("critical", 2)].into_iter();
    let mut calls = Vec::new();
    let order = ["probe", "sheddable", "default", "critical"];
    for full in 0..=order.len() {
        for (class, priority) in order.into_iter().enumerate() {
            let answer = with_priority(&client, priority).await;
            let expected = if class < full { "14" } else { "0" };
            assert_eq!(answer.code(), expected, "{priority}, {full} classes are full");
            let pushback = answer.headers.get("grpc-retry-pushback-ms");
            let never = pushback.is_some_and(|pushback| pushback == "-1");
            assert_eq!(never, class < full && class < 2, "{priority}: {pushback:?}");
        }
        if let Some((_, places)) = free.next() {
            calls.extend(occupy(&server, &client, places, &[("x-priority", "critical")]).await);
        }
    }
    is_shed(&server, "concurrency", 1 + 2 + 3 + 4);
    calls.iter().for_each(JoinHandle::abort);
    in_progress(&server, 0).await;
    assert_eq!(with_priority(&client, "probe").await.code(), "0");
}

#[tokio::test]
async fn a_caller_that_is_not_trusted_is_believed_that_its_calls_matter_little() {
    let server = start_with(ServerSettings {
        concurrency: concurrency(10),
        trust_priority: false,
        ..settings()
    })
    .await;
    let client = Http2::connect(server.address).await;
    let mut calls = occupy(&server, &client, 7, &[]).await;
    assert_eq!(with_priority(&client, "sheddable").await.code(), "14");
    assert_eq!(with_priority(&client, "critical").await.code(), "0");
    calls.extend(occupy(&server, &client, 3, &[]).await);
    assert_eq!(with_priority(&client, "critical").await.code(), "14");
    calls.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn the_limit_of_the_process_leaves_places_for_what_matters_too() {
    let server = start_with(ServerSettings { calls_max: 10, ..settings() }).await;
    let client = Http2::connect(server.address).await;
    let calls = occupy(&server, &client, 7, &[]).await;
    assert_eq!(with_priority(&client, "sheddable").await.code(), "14");
    assert_eq!(with_priority(&client, "default").await.code(), "0");
    is_shed(&server, "calls_max", 1);
    calls.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn a_greedy_client_leaves_room_for_a_modest_one() {
    const GREEDY: &[(&str, &str)] = &[("x-tenant", "greedy")];
    const MODEST: &[(&str, &str)] = &[("x-tenant", "modest")];
    let server = start_with(ServerSettings {
        concurrency: concurrency(20),
        client_header: Some(HeaderName::from_static("x-tenant")),
        ..settings()
    })
    .await;
    let client = Http2::connect(server.address).await;
    // The server knows of the other.
    assert_eq!(client.grpc_with("Wait", b"0", MODEST).await.code(), "0");
    let calls = occupy(&server, &client, 16, GREEDY).await;
    for _ in 0..10 {
        assert_eq!(client.grpc_with("Wait", b"0", GREEDY).await.code(), "14");
        assert_eq!(client.grpc_with("Wait", b"0", MODEST).await.code(), "0");
    }
    is_shed(&server, "fairness", 10);
    is_shed(&server, "concurrency", 0);
    calls.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn a_client_alone_may_have_all_places() {
    let server = start_with(ServerSettings { concurrency: concurrency(20), ..settings() }).await;
    let client = Http2::connect(server.address).await;
    let calls = occupy(&server, &client, 20, &[]).await;
    assert_eq!(client.grpc("Wait", b"0").await.code(), "14");
    is_shed(&server, "fairness", 0);
    calls.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn a_busy_processor_lets_in_what_it_can_work_on_and_everything_critical() {
    let server = {
        let cpu = CpuSettings { smoothing: Duration::ZERO, ..CpuSettings::default() };
        let settings = ServerSettings { cpu: Some(cpu), ..settings() };
        let (telemetry, health) = (Telemetry::new(), Health::new());
        let services: Vec<Arc<dyn antiphon_rpc::Service>> = vec![Arc::new(echo::Echo::default())];
        let server = Server::bind(services, settings, &telemetry, &health).await.unwrap();
        let address = server.address();
        // Each time it is read, the process has used ten seconds more, of its one core.
        let used = AtomicU64::new(0);
        let server = server.with_cpu_use(move || CpuUse {
            used: Duration::from_secs(used.fetch_add(10, Ordering::Relaxed)),
            waited: Duration::ZERO,
            cores: 1.0,
        });
        let (handle, shutdown) = ShutdownHandle::new();
        let ended = tokio::spawn(async move { server.run(shutdown).await.unwrap() });
        Running { address, shutdown: handle, health, telemetry, ended }
    };
    let client = Http2::connect(server.address).await;
    // What the method does at its best: one call after the other, for more than a tenth of a second.
    for _ in 0..15 {
        assert_eq!(client.grpc("Wait", b"10").await.code(), "0");
    }
    until(|| server.metrics().lines().any(|line| load_of(line).is_some_and(|load| load > 1.0)))
        .await;
    // One is worked on at once, or a little more, and eight may wait.
    let calls = occupy(&server, &client, 7, &[]).await;
    assert_eq!(with_priority(&client, "sheddable").await.code(), "14");
    assert_eq!(with_priority(&client, "default").await.code(), "0");
    let more = occupy(&server, &client, 3, &[("x-priority", "critical")]).await;
    assert_eq!(with_priority(&client, "default").await.code(), "14");
    assert_eq!(with_priority(&client, "critical").await.code(), "0");
    is_shed(&server, "cpu", 2);
    // Another method did nothing yet that it could be judged by.
    assert_eq!(client.grpc("Echo", b"").await.code(), "0");
    calls.iter().chain(&more).for_each(JoinHandle::abort);
}

fn load_of(line: &str) -> Option<f64> {
    line.strip_prefix("rpc_server_cpu_load ")?.parse().ok()
}
