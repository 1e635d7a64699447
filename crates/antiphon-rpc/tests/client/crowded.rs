//! More calls than one connection carries.

use std::time::Duration;

use antiphon_rpc::client::{ClientSettings, targets};
use antiphon_rpc::server::ServerSettings;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::support::{Fleet, Load, PUT, call, server_settings, until};

/// One instance that takes few calls over a connection.
async fn fleet(streams_max: u32, settings: ClientSettings) -> Fleet {
    Fleet::start_with(1, settings, ServerSettings { streams_max, ..server_settings() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_no_further_connection_is_asked_less_and_less() {
    let fleet = fleet(10, ClientSettings::default()).await;
    fleet.call(PUT).await.unwrap();
    let gate = &fleet.instances[0].gate;
    // Whoever comes now is sent away.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    gate.lead_to(nobody);
    let begun = Instant::now();
    let load = Load::start(&fleet, PUT, 60);
    load.more(3_000).await;
    assert!(load.stop().await.is_empty());
    let asked = gate.accepted() - 1;
    // After a tenth of a second, and then after longer and longer.
    let most = 2.0 + begun.elapsed().as_secs_f64() / 0.08;
    println!("asked {asked} times in {:?}", begun.elapsed());
    assert!(asked >= 1 && asked as f64 <= most, "{asked} of {most}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_missed_at_once_though_a_further_one_is_being_made() {
    let patient =
        ClientSettings { connect_timeout: Duration::from_secs(600), ..ClientSettings::default() };
    let fleet = fleet(2, patient).await;
    fleet.call(PUT).await.unwrap();
    let instance = &fleet.instances[0];
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    instance.gate.lead_to(silent.local_addr().unwrap());
    instance.behaviour.delay(Duration::from_millis(50));
    let (a, b, c) = tokio::join!(fleet.call(PUT), fleet.call(PUT), fleet.call(PUT));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    until(|| instance.gate.accepted() == 2).await;
    let state = || targets(&fleet.telemetry)[0].instances[0].state;
    assert_eq!(state(), "ready");
    instance.shutdown.drain(Duration::from_secs(5));
    until(|| state() == "connecting").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_for_a_stream_survive_the_end_of_the_connection() {
    let server = ServerSettings {
        streams_max: 10,
        connection_age_max: Duration::from_millis(150),
        ..server_settings()
    };
    let fleet = Fleet::start_with(1, ClientSettings::default(), server).await;
    fleet.instances[0].behaviour.delay(Duration::from_millis(10));
    // These may not be done twice.
    let load = Load::start(&fleet, PUT, 60);
    until(|| fleet.instances[0].gate.accepted() > 12).await;
    let failed = load.stop().await;
    assert!(failed.is_empty(), "{} failed, the first: {:?}", failed.len(), failed[0]);
}

#[tokio::test]
async fn a_call_that_waits_for_a_stream_goes_over_a_further_connection_as_soon_as_there_is_one() {
    let fleet = fleet(2, ClientSettings::default()).await;
    fleet.call(PUT).await.unwrap();
    let behaviour = &fleet.instances[0].behaviour;
    behaviour.delay(Duration::from_secs(600));
    let long = [(); 2].map(|()| {
        let channel = fleet.channel.clone();
        tokio::spawn(async move { call(&channel, PUT).await })
    });
    until(|| behaviour.calls() == 3).await;
    behaviour.delay(Duration::ZERO);
    assert!(fleet.call(PUT).await.is_ok());
    assert_eq!(fleet.instances[0].gate.accepted(), 2);
    long.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn calls_that_wait_for_a_stream_come_in_their_order_and_may_give_up() {
    let settings = ClientSettings { connections_max: 1, ..ClientSettings::default() };
    let fleet = fleet(1, settings).await;
    fleet.call(PUT).await.unwrap();
    let behaviour = &fleet.instances[0].behaviour;
    behaviour.delay(Duration::from_millis(30));
    let calling = |channel: &antiphon_rpc::client::Channel| {
        let channel = channel.clone();
        tokio::spawn(async move { call(&channel, PUT).await })
    };
    let first = calling(&fleet.channel);
    until(|| behaviour.calls() == 2).await;
    let (second, third) = (calling(&fleet.channel), calling(&fleet.channel));
    let in_flight = || targets(&fleet.telemetry)[0].instances[0].in_flight;
    until(|| in_flight() == 3).await;
    assert_eq!(behaviour.calls(), 2);
    second.abort();
    assert!(first.await.unwrap().is_ok() && third.await.unwrap().is_ok());
    assert_eq!(behaviour.calls(), 3, "who gave up was never sent");
    assert!(fleet.call(PUT).await.is_ok(), "and its place is not lost");
}
