//! Instances that die, leave, restart and fail while calls go on.

use std::time::Duration;

use antiphon_core::Code;
use antiphon_resilience::balance::Policy;
use antiphon_rpc::client::{ClientSettings, targets};
use antiphon_rpc::server::ServerSettings;
use tokio::time::Instant;

use crate::support::{
    Fleet, GET, Load, PUT, call, channel, server_settings, soon, unavailable, until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_an_instance_fails_no_call_that_may_be_tried_again() {
    let fleet = Fleet::start(5, ClientSettings::default()).await;
    let load = Load::start(&fleet, GET, 16);
    load.more(500).await;
    let dead = &fleet.instances[2];
    dead.gate.kill();
    load.more(2_000).await;
    let calls = dead.behaviour.calls();
    load.more(2_000).await;
    assert_eq!(dead.behaviour.calls(), calls, "calls to an instance that is not there");
    dead.gate.revive();
    until(|| dead.behaviour.calls() > calls).await;
    let failed = load.stop().await;
    assert!(failed.is_empty(), "{} failed, the first: {:?}", failed.len(), failed[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_an_instance_fails_at_most_the_calls_in_flight_on_it() {
    let fleet = Fleet::start(5, ClientSettings::default()).await;
    for instance in &fleet.instances {
        instance.behaviour.delay(Duration::from_millis(2));
    }
    let load = Load::start(&fleet, PUT, 32);
    load.more(500).await;
    fleet.instances[2].gate.kill();
    load.more(2_000).await;
    let failed = load.stop().await;
    assert!(failed.len() <= 32, "{}", failed.len());
    for status in failed {
        assert_eq!(status.code(), Code::Unavailable);
        let source = std::error::Error::source(&status).unwrap().to_string();
        let dead = fleet.instances[2].gate.address().to_string();
        assert!(source.contains(&dead), "names the instance: {source}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_all_instances_fails_no_call() {
    let mut fleet = Fleet::start(5, ClientSettings::default()).await;
    // These may not be done twice: nothing but the order of leaving keeps them from failing.
    let load = Load::start(&fleet, PUT, 16);
    for number in 0..5 {
        load.more(300).await;
        let instance = &mut fleet.instances[number];
        instance.restart().await;
        let calls = instance.behaviour.calls();
        until(|| instance.behaviour.calls() > calls).await;
    }
    let failed = load.stop().await;
    assert!(failed.is_empty(), "{} failed, the first: {:?}", failed.len(), failed[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_grow_old_fail_no_call() {
    let server =
        ServerSettings { connection_age_max: Duration::from_millis(150), ..server_settings() };
    let fleet = Fleet::start_with(3, ClientSettings::default(), server).await;
    let load = Load::start(&fleet, PUT, 16);
    until(|| fleet.instances.iter().all(|instance| instance.gate.accepted() > 5)).await;
    let failed = load.stop().await;
    assert!(failed.is_empty(), "{} failed, the first: {:?}", failed.len(), failed[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_lost_soon_but_answered_something_fail_no_call() {
    let server =
        ServerSettings { connection_age_max: Duration::from_millis(40), ..server_settings() };
    let settings = ClientSettings { wait_for_ready: true, ..ClientSettings::default() };
    let fleet = Fleet::start_with(1, settings, server).await;
    let load = Load::start(&fleet, PUT, 8);
    // With pauses between them that grow this would take more than a minute.
    until(|| fleet.instances[0].gate.accepted() > 20).await;
    let failed = load.stop().await;
    assert!(failed.is_empty(), "{} failed, the first: {:?}", failed.len(), failed[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_was_set_aside_is_tried_by_calls_that_may_be_tried_again() {
    let mut settings = ClientSettings::default();
    settings.ejection.base = Duration::from_millis(20);
    settings.ejection.max = Duration::from_millis(20);
    let fleet = Fleet::start(2, settings).await;
    let bad = &fleet.instances[0].behaviour;
    bad.fail_with(Some(unavailable(None)));
    let harmless = Load::start(&fleet, GET, 4);
    until(|| targets(&fleet.telemetry)[0].instances.iter().any(|one| one.set_aside)).await;
    let others = Load::start(&fleet, PUT, 4);
    let calls = bad.calls();
    until(|| bad.calls() > calls + 20).await;
    let failed = (harmless.stop().await, others.stop().await);
    assert!(failed.0.is_empty(), "{failed:?}");
    // Half of the tries would be theirs. Some are, where a busy machine keeps the others from calling.
    assert!(failed.1.len() < 5, "{failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_fails_everything_is_set_aside_and_comes_back_when_it_works() {
    let mut settings = ClientSettings::default();
    settings.ejection.base = Duration::from_millis(200);
    let fleet = Fleet::start(5, settings).await;
    let load = Load::start(&fleet, GET, 8);
    load.more(200).await;
    let bad = &fleet.instances[1].behaviour;
    bad.fail_with(Some(unavailable(None)));
    let set_aside = || {
        let report = targets(&fleet.telemetry).remove(0);
        report.instances.iter().filter(|instance| instance.set_aside).count()
    };
    until(|| set_aside() == 1).await;
    let (before, begun) = (bad.calls(), Instant::now());
    load.more(2_000).await;
    // Only probes, one after each time out, which is 160 ms longer than the last one at least.
    let most = 2.0 + (begun.elapsed().as_secs_f64() / 0.08).sqrt();
    assert!((bad.calls() - before) as f64 <= most, "{}", bad.calls() - before);
    bad.fail_with(None);
    until(|| set_aside() == 0).await;
    let calls = bad.calls();
    until(|| bad.calls() > calls + 50).await;
    let failed = load.stop().await;
    assert!(failed.is_empty(), "{} failed, the first: {:?}", failed.len(), failed[0]);
    assert!(fleet.metrics().contains("rpc_client_ejections_total"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_at_once_open_further_connections() {
    let server = ServerSettings { streams_max: 10, ..server_settings() };
    let fleet = Fleet::start_with(1, ClientSettings::default(), server).await;
    fleet.instances[0].behaviour.delay(Duration::from_millis(20));
    let load = Load::start(&fleet, PUT, 60);
    until(|| fleet.instances[0].gate.accepted() == 4).await;
    load.more(300).await;
    assert_eq!(fleet.instances[0].gate.accepted(), 4, "no more than the settings allow");
    assert!(load.stop().await.is_empty());
}

#[tokio::test]
async fn nobody_is_connected_to_before_the_first_call_and_again_when_nobody_calls() {
    let settings =
        ClientSettings { idle_timeout: Duration::from_millis(30), ..ClientSettings::default() };
    let fleet = Fleet::start(1, settings).await;
    let gate = &fleet.instances[0].gate;
    assert_eq!(gate.accepted(), 0);
    assert_eq!(fleet.call(GET).await.unwrap(), "i-0");
    assert_eq!(gate.accepted(), 1);
    let state = || targets(&fleet.telemetry)[0].instances[0].state;
    assert_eq!(state(), "ready");
    until(|| state() == "idle").await;
    assert_eq!(fleet.call(GET).await.unwrap(), "i-0");
    assert_eq!(gate.accepted(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_settings_are_taken_over_under_load_without_a_failed_call() {
    let fleet = Fleet::start(2, ClientSettings::default()).await;
    let load = Load::start(&fleet, PUT, 8);
    let targets = fleet.instances.iter().map(|one| format!("static:{}", one.gate.address()));
    let targets: Vec<antiphon_rpc::client::Target> =
        targets.map(|target| target.parse().unwrap()).collect();
    for round in 0..20 {
        let settings =
            ClientSettings { connections_max: 1 + round % 3, ..ClientSettings::default() };
        let target = &targets[round % 2];
        assert!(fleet.channel.reload(target, settings.clone()).unwrap());
        assert!(!fleet.channel.reload(target, settings).unwrap(), "nothing differs");
        let calls = fleet.instances[round % 2].behaviour.calls();
        until(|| fleet.instances[round % 2].behaviour.calls() > calls + 20).await;
    }
    let failed = load.stop().await;
    assert!(failed.is_empty(), "{} failed, the first: {:?}", failed.len(), failed[0]);
}

#[tokio::test]
async fn two_channels_to_one_target_are_one_series_of_metrics() {
    let fleet = Fleet::start(1, ClientSettings::default()).await;
    let target = format!("static:{}", fleet.instances[0].gate.address());
    let other = channel(&target, ClientSettings::default(), &fleet.telemetry);
    for _ in 0..3 {
        assert!(fleet.call(GET).await.is_ok() && call(&other, GET).await.is_ok());
    }
    let metrics = fleet.metrics();
    let lines = metrics.lines().filter(|line| line.starts_with("rpc_client_instance_picked{"));
    let values: Vec<_> = lines.map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert_eq!(values, ["6.0"], "{metrics}");
}

#[tokio::test]
async fn calls_of_one_key_go_to_one_instance() {
    let mut settings = ClientSettings::default();
    settings.balance.policy = Policy::ConsistentHash { bound: f32::INFINITY };
    let fleet = Fleet::start(5, settings).await;
    assert!(fleet.call(GET).await.is_ok());
    let ready = || {
        let report = targets(&fleet.telemetry).remove(0);
        report.instances.iter().filter(|instance| instance.state == "ready").count()
    };
    until(|| ready() == 5).await;
    let mut seen = std::collections::BTreeSet::new();
    for key in 0..20 {
        let channel = fleet.channel.placed(&format!("customer-{key}"));
        let first = call(&channel, GET).await.unwrap();
        for _ in 0..5 {
            assert_eq!(call(&channel, GET).await.unwrap(), first);
        }
        seen.insert(first);
    }
    assert!(seen.len() > 2, "{seen:?}");
}

#[tokio::test]
async fn instances_of_lower_priority_are_called_only_when_the_others_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("instances.toml");
    let fleet = Fleet::start(2, ClientSettings::default()).await;
    let entry = |at: usize| {
        let address = fleet.instances[at].gate.address();
        format!("[[fleet]]\naddress = \"{address}\"\npriority = {at}\n")
    };
    std::fs::write(&list, entry(0) + &entry(1)).unwrap();
    let target = format!("file://{}#fleet", list.display());
    let channel = channel(&target, ClientSettings::default(), &fleet.telemetry);
    soon(async { while call(&channel, GET).await.unwrap() != "i-0" {} }).await;
    for _ in 0..20 {
        assert_eq!(call(&channel, GET).await.unwrap(), "i-0");
    }
    fleet.instances[0].gate.kill();
    for _ in 0..20 {
        assert_eq!(call(&channel, GET).await.unwrap(), "i-1");
    }
    fleet.instances[0].gate.revive();
    soon(async { while call(&channel, GET).await.unwrap() != "i-0" {} }).await;
}

#[test]
fn a_runtime_that_called_may_end_before_the_others() {
    let build =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let (home, caller) = (build().unwrap(), build().unwrap());
    let mut settings = ClientSettings::default();
    settings.ejection.sweep_interval = Duration::from_millis(5);
    let fleet = home.block_on(Fleet::start(1, settings));
    assert!(caller.block_on(fleet.call(GET)).is_ok());
    drop(caller);
    // The tasks of the channel live on, and do what they do now and then.
    home.block_on(async { tokio::time::sleep(Duration::from_millis(30)).await });
    fleet.instances[0].gate.kill();
    let state = || targets(&fleet.telemetry)[0].instances[0].state;
    home.block_on(until(|| state() == "backing_off"));
    home.block_on(async { fleet.instances[0].gate.revive() });
    home.block_on(until(|| state() == "ready"));
    assert!(home.block_on(fleet.call(GET)).is_ok());
}
