//! Instances with more to do than they can.

use std::time::Duration;

use antiphon_core::Code;
use antiphon_rpc::client::{ClientSettings, InstanceReport, targets};
use antiphon_rpc::server::ServerSettings;
use antiphon_telemetry::Telemetry;
use buffa_types::google::protobuf::StringValue;
use tokio::task::JoinHandle;

use crate::support::{
    COUNT, Fleet, GET, Load, PUT, Running, call, channel, server_settings, start, until,
};

/// An instance with room for one call, and the call that has it.
async fn full(name: &str) -> (Running, JoinHandle<()>) {
    let server = ServerSettings { calls_max: 1, ..server_settings() };
    let instance = start(name, server).await;
    instance.behaviour.delay(Duration::from_secs(600));
    let patient = ClientSettings { timeout: Duration::from_secs(600), ..ClientSettings::default() };
    let own = channel(&format!("static:{}", instance.address), patient, &Telemetry::new());
    let has_the_place = tokio::spawn(async move {
        let _ended = call(&own, PUT).await;
    });
    until(|| instance.behaviour.calls() == 1).await;
    instance.behaviour.delay(Duration::ZERO);
    (instance, has_the_place)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_sheds_load_is_called_less_and_never_set_aside() {
    let (busy, has_the_place) = full("i-0").await;
    let mut instances = vec![busy];
    for number in 1..5 {
        let instance = start(&format!("i-{number}"), server_settings()).await;
        // So that whoever refuses is the fastest by far.
        instance.behaviour.delay(Duration::from_millis(5));
        instances.push(instance);
    }
    let fleet = Fleet::of(instances, ClientSettings::default());
    // Else whoever is connected first would have all of the first calls.
    assert!(call(&fleet.channel, GET).await.is_ok());
    let is_ready = |instance: &InstanceReport| instance.state == "ready";
    until(|| targets(&fleet.telemetry)[0].instances.iter().all(is_ready)).await;
    let load = Load::start(&fleet, GET, 16);
    load.more(3_000).await;
    let busy = fleet.instances[0].gate.address().to_string();
    let report = || {
        let instances = targets(&fleet.telemetry).remove(0).instances;
        instances.into_iter().find(|one| one.address == busy).unwrap()
    };
    let (shed, picked) = (fleet.attempts("shed"), report().picked);
    println!("of 3000 calls {picked} went to the instance that sheds, which refused {shed}");
    assert!((1..=60).contains(&picked), "{picked}");
    assert!((1..=picked).contains(&shed), "{shed}");
    assert_eq!(fleet.count("rpc_client_ejections_total", ""), 0);
    assert!(!report().set_aside);

    has_the_place.abort();
    let calls = fleet.instances[0].behaviour.calls();
    until(|| fleet.instances[0].behaviour.calls() > calls + 200).await;
    let failed = load.stop().await;
    assert!(failed.is_empty(), "{} failed, the first: {:?}", failed.len(), failed[0]);
    assert_eq!(fleet.attempts("failed"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_sheds_everything_is_held_back_from() {
    let (busy, _has_the_place) = full("i-0").await;
    let mut settings = ClientSettings::default();
    settings.ejection.panic_threshold = 0.0;
    settings.ejection.part_max = 1.0;
    let fleet = Fleet::of(vec![busy], settings);
    let mut held_back = 0;
    for _ in 0..300 {
        let status = call(&fleet.channel, PUT).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        held_back += u64::from(status.message().contains("held back"));
    }
    assert!(held_back > 100, "{held_back}");
    assert_eq!(fleet.attempts("shed") + held_back, 300);
    assert_eq!(fleet.count("rpc_client_ejections_total", ""), 0);
}

#[tokio::test]
async fn a_stream_that_is_refused_says_so() {
    let (busy, _has_the_place) = full("i-0").await;
    let fleet = Fleet::of(vec![busy], ClientSettings::default());
    let opening = fleet.channel.server_stream::<_, StringValue>(COUNT, StringValue::default());
    let refused = match Box::pin(opening).await {
        Ok(mut stream) => futures_util::StreamExt::next(&mut stream).await.unwrap().unwrap_err(),
        Err(status) => status,
    };
    assert_eq!((refused.code(), refused.reason()), (Code::Unavailable, "OVERLOADED"));
    assert_eq!((fleet.attempts("shed"), fleet.attempts("neutral")), (1, 0));
}
