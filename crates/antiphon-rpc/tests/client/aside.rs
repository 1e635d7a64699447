//! Which calls try an instance that was set aside.

use std::time::Duration;

use antiphon_core::Context;
use antiphon_resilience::balance::Policy;
use antiphon_rpc::client::{ClientSettings, InstanceReport, MethodSettings, targets};

use crate::support::{CONTEXT, Clock, Fleet, GET, PUT, moving, unavailable, until};

/// Instances that are set aside soon, and for next to no time.
fn settings() -> ClientSettings {
    let mut settings = ClientSettings::default();
    settings.balance.policy = Policy::RoundRobin;
    settings.ejection.base = Duration::from_millis(1);
    settings.ejection.max = Duration::from_millis(1);
    settings.budget.per_second_min = 1_000.0;
    // The throttle would hold calls back.
    settings.throttle.requests_min = u64::MAX;
    settings
}

fn count(fleet: &Fleet, which: impl Fn(&InstanceReport) -> bool) -> usize {
    targets(&fleet.telemetry)[0].instances.iter().filter(|one| which(one)).count()
}

#[tokio::test]
async fn a_call_tries_one_of_them_at_most() {
    let fleet = Fleet::start(6, settings()).await;
    fleet.call(GET).await.unwrap();
    until(|| count(&fleet, |one| one.state == "ready") == 6).await;
    for bad in &fleet.instances[..3] {
        bad.behaviour.fail_with(Some(unavailable(None)));
    }
    while count(&fleet, |one| one.set_aside) < 3 {
        // It may meet those that fail three times.
        let _ = fleet.call(GET).await;
    }
    let calls = || fleet.instances[..3].iter().map(|one| one.behaviour.calls()).sum::<usize>();
    let before = calls();
    for _ in 0..10 {
        fleet.call(GET).await.unwrap();
    }
    assert!((1..=10).contains(&(calls() - before)), "{}", calls() - before);
    assert_eq!(count(&fleet, |one| one.set_aside), 3);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_has_no_further_attempt_does_not_try_one_as_long_as_others_may() {
    let _clock = Clock::hold();
    let mut settings = settings();
    let once = MethodSettings { attempts_max: Some(1), ..MethodSettings::default() };
    settings.methods.insert("t.v1.Fleet/Get".into(), once);
    let fleet = Fleet::start(2, settings).await;
    moving(fleet.call(PUT)).await.unwrap();
    moving(until(|| count(&fleet, |one| one.state == "ready") == 2)).await;
    let bad = &fleet.instances[0].behaviour;
    bad.fail_with(Some(unavailable(None)));
    while count(&fleet, |one| one.set_aside) == 0 {
        let _ = moving(fleet.call(PUT)).await;
    }
    tokio::time::advance(Duration::from_millis(10)).await;
    let calls = bad.calls();
    // The first has no further attempt because of the settings, the second because of its caller.
    for _ in 0..3 {
        assert_eq!(moving(fleet.call(GET)).await.unwrap(), "i-1");
        let again = Context::root().with_previous_attempts(1);
        moving(again.scope(fleet.call(CONTEXT))).await.unwrap();
    }
    assert_eq!(bad.calls(), calls);
    // When nobody else comes they do.
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(moving(fleet.call(GET)).await.is_err());
    assert_eq!(bad.calls(), calls + 1);
}
