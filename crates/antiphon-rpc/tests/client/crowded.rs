//! More calls than one connection carries.

use std::time::Duration;

use antiphon_rpc::client::{ClientSettings, targets};
use antiphon_rpc::server::ServerSettings;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::support::{Fleet, Load, PUT, server_settings, until};

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
