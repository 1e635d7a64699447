//! Connections are kept as long as anybody calls the target, whoever takes the calls.

use std::collections::BTreeSet;
use std::time::Duration;

use antiphon_resilience::balance::Policy;
use antiphon_rpc::client::{Channel, ClientSettings, targets};
use antiphon_telemetry::Telemetry;
use tokio::time::advance;

use crate::support::{Clock, Fleet, GET, call, channel, moving, until};

/// A client that closes its connections soon, and goes round.
fn settings() -> ClientSettings {
    let mut settings =
        ClientSettings { idle_timeout: Duration::from_millis(30), ..ClientSettings::default() };
    settings.balance.policy = Policy::RoundRobin;
    settings
}

/// How many instances are connected to.
fn ready(telemetry: &Telemetry) -> usize {
    let report = targets(telemetry).remove(0);
    report.instances.iter().filter(|instance| instance.state == "ready").count()
}

/// Who answers so many calls, of which there is one every 20 ms.
async fn now_and_then(channel: &Channel, calls: usize) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for _ in 0..calls {
        seen.insert(moving(call(channel, GET)).await.unwrap());
        moving(advance(Duration::from_millis(20))).await;
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn few_calls_keep_all_instances_for_when_there_are_more() {
    let _clock = Clock::hold();
    let fleet = Fleet::start(3, settings()).await;
    moving(fleet.call(GET)).await.unwrap();
    moving(until(|| ready(&fleet.telemetry) == 3)).await;
    now_and_then(&fleet.channel, 30).await;
    assert_eq!(ready(&fleet.telemetry), 3);
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        seen.insert(moving(fleet.call(GET)).await.unwrap());
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    let connections: usize = fleet.instances.iter().map(|one| one.gate.accepted()).sum();
    assert_eq!(connections, 3, "none was made again");
}

#[tokio::test(start_paused = true)]
async fn one_call_after_a_long_rest_wakes_all_instances() {
    let _clock = Clock::hold();
    let fleet = Fleet::start(3, settings()).await;
    for connections in [3, 6] {
        moving(fleet.call(GET)).await.unwrap();
        moving(until(|| ready(&fleet.telemetry) == 3)).await;
        let made: usize = fleet.instances.iter().map(|one| one.gate.accepted()).sum();
        assert_eq!(made, connections);
        moving(until(|| ready(&fleet.telemetry) == 0)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn another_zone_is_there_when_the_own_one_dies() {
    let _clock = Clock::hold();
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("instances.toml");
    let fleet = Fleet::start(5, ClientSettings::default()).await;
    let entry = |at: usize| {
        let address = fleet.instances[at].gate.address();
        let zone = if at < 3 { "near" } else { "far" };
        format!("[[fleet]]\naddress = \"{address}\"\nzone = \"{zone}\"\n")
    };
    std::fs::write(&list, (0..5).map(entry).collect::<String>()).unwrap();
    let target = format!("file://{}#fleet", list.display());
    let mut settings = settings();
    settings.balance.zone = Some("near".into());
    let telemetry = Telemetry::new();
    let channel = channel(&target, settings, &telemetry);
    moving(call(&channel, GET)).await.unwrap();
    moving(until(|| ready(&telemetry) == 5)).await;
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let near: BTreeSet<String> = names(&["i-0", "i-1", "i-2"]);
    assert_eq!(now_and_then(&channel, 30).await, near);
    assert_eq!(ready(&telemetry), 5);
    for dead in &fleet.instances[..2] {
        dead.gate.kill();
    }
    moving(until(|| ready(&telemetry) == 3)).await;
    assert_eq!(now_and_then(&channel, 9).await, names(&["i-2", "i-3", "i-4"]));
}
