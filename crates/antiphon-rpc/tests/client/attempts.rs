//! Which calls are tried again, how often, and what the caller hears at the end.

use std::error::Error;
use std::time::Duration;

use antiphon_core::{Code, Context, Priority, Retry};
use antiphon_resilience::BudgetSettings;
use antiphon_resilience::balance::Policy;
use antiphon_rpc::client::{ClientSettings, MethodSettings};
use antiphon_telemetry::Telemetry;

use crate::support::{
    CONTEXT, COUNT, Clock, Fleet, GET, PUT, call, channel, moving, soon, unavailable, until,
};
use buffa_types::google::protobuf::StringValue;
use tokio::time::Instant;

#[tokio::test]
async fn a_failure_is_tried_again_at_another_instance_and_says_so() {
    let fleet = Fleet::start(2, ClientSettings::default()).await;
    fleet.instances[0].behaviour.fail_with(Some(unavailable(None)));
    // The other one may be connected first, and has all calls until then.
    soon(async {
        while fleet.count("rpc_client_retries_total", "counted") == 0 {
            assert_eq!(fleet.call(GET).await.unwrap(), "i-1");
        }
    })
    .await;
    // Whoever is asked again knows that it is.
    let mut seen: Vec<_> = Vec::new();
    for _ in 0..20 {
        let answer = fleet.call(CONTEXT).await.unwrap();
        seen.push(answer.split(' ').next().unwrap().to_owned());
    }
    assert!(seen.iter().all(|previous| previous == "0" || previous == "1"), "{seen:?}");
}

#[tokio::test]
async fn what_nobody_may_do_twice_is_not_tried_again() {
    let fleet = Fleet::start(1, ClientSettings::default()).await;
    fleet.instances[0].behaviour.fail_with(Some(unavailable(None)));
    let status = fleet.call(PUT).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "not now"));
    assert_eq!(fleet.instances[0].behaviour.calls(), 1);
}

#[tokio::test]
async fn what_fails_every_time_is_told_with_every_attempt() {
    let fleet = Fleet::start(2, ClientSettings::default()).await;
    for instance in &fleet.instances {
        instance.behaviour.fail_with(Some(unavailable(None)));
    }
    let status = fleet.call(GET).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "not now"));
    assert_eq!(status.retry(), Retry::Never, "the layer above must not multiply it");
    let source = status.source().unwrap().to_string();
    assert!(source.contains("all attempts failed"), "{source}");
    for instance in &fleet.instances {
        assert!(source.contains(&instance.gate.address().to_string()), "{source}");
    }
    let calls: usize = fleet.instances.iter().map(|one| one.behaviour.calls()).sum();
    assert_eq!(calls, 3);
}

#[tokio::test]
async fn other_codes_and_the_servers_word_end_a_call() {
    let fleet = Fleet::start(1, ClientSettings::default()).await;
    let behaviour = &fleet.instances[0].behaviour;
    behaviour.fail_with(Some(antiphon_core::Status::invalid_argument("no")));
    assert_eq!(fleet.call(GET).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(behaviour.calls(), 1);
    behaviour.fail_with(Some(unavailable(Some(Retry::Never))));
    assert_eq!(fleet.call(GET).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(behaviour.calls(), 2);
}

#[tokio::test]
async fn the_server_chooses_the_wait() {
    let fleet = Fleet::start(1, ClientSettings::default()).await;
    let behaviour = &fleet.instances[0].behaviour;
    let wait = Duration::from_millis(120);
    behaviour.fail_with(Some(unavailable(Some(Retry::After(wait)))));
    let begun = Instant::now();
    let calling = fleet.call(GET);
    let mending = async {
        until(|| behaviour.calls() == 1).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        behaviour.fail_with(None);
    };
    let (answer, ()) = tokio::join!(calling, mending);
    assert_eq!(answer.unwrap(), "i-0");
    assert!(begun.elapsed() >= wait, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_call_that_is_somebodys_second_attempt_makes_none_of_its_own() {
    let fleet = Fleet::start(2, ClientSettings::default()).await;
    for instance in &fleet.instances {
        instance.behaviour.fail_with(Some(unavailable(None)));
    }
    let context = Context::root().with_previous_attempts(1);
    let status = context.scope(fleet.call(GET)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let calls: usize = fleet.instances.iter().map(|one| one.behaviour.calls()).sum();
    assert_eq!(calls, 1);
}

#[tokio::test]
async fn what_a_call_does_has_the_priority_of_the_call() {
    let fleet = Fleet::start(1, ClientSettings::default()).await;
    for priority in [Priority::Sheddable, Priority::Default, Priority::Critical] {
        let context = Context::root().with_priority(priority);
        let answer = context.scope(fleet.call(CONTEXT)).await.unwrap();
        assert_eq!(answer.split(' ').nth(2), Some(priority.name()));
    }
}

#[tokio::test]
async fn the_budget_bounds_the_attempts_of_all_calls() {
    let settings = ClientSettings {
        budget: BudgetSettings { per_second_min: 0.0, ..BudgetSettings::RETRY },
        ..ClientSettings::default()
    };
    let mut settings = settings;
    // The throttle would end the calls before the budget does.
    settings.throttle.requests_min = u64::MAX;
    settings.ejection.consecutive_failures = 0;
    let fleet = Fleet::start(2, settings).await;
    for instance in &fleet.instances {
        instance.behaviour.fail_with(Some(unavailable(None)));
    }
    for _ in 0..200 {
        assert!(fleet.call(GET).await.is_err());
    }
    let calls: usize = fleet.instances.iter().map(|one| one.behaviour.calls()).sum();
    assert!((201..=240).contains(&calls), "{calls}");
}

#[tokio::test]
async fn a_target_that_fails_everything_is_left_alone() {
    let mut settings = ClientSettings::default();
    settings.ejection.consecutive_failures = 0;
    let fleet = Fleet::start(1, settings).await;
    let behaviour = &fleet.instances[0].behaviour;
    behaviour.fail_with(Some(unavailable(None)));
    let mut held_back = 0;
    for _ in 0..300 {
        let status = fleet.call(PUT).await.unwrap_err();
        held_back += usize::from(status.message().contains("held back"));
    }
    assert!(held_back > 100, "{held_back}");
    assert_eq!(behaviour.calls() + held_back, 300);
    assert!(fleet.metrics().contains("rpc_client_throttled_total"));
}

#[tokio::test]
async fn nobody_to_call_is_told_at_once_with_the_reason() {
    let telemetry = Telemetry::new();
    let fleet = Fleet::start(1, ClientSettings::default()).await;
    fleet.instances[0].gate.kill();
    let address = fleet.instances[0].gate.address();
    let status = soon(fleet.call(GET)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let source = status.source().unwrap().to_string();
    assert!(source.contains(&address.to_string()) && source.contains("refused"), "{source}");
    let missing = channel("file:///nowhere/instances.toml", ClientSettings::default(), &telemetry);
    let status = soon(call(&missing, GET)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let source = status.source().unwrap().to_string();
    assert!(source.contains("not known") && source.contains("/nowhere/instances.toml"), "{source}");
}

#[tokio::test]
async fn calls_wait_for_an_instance_where_they_are_told_to() {
    let mut settings = ClientSettings::default();
    let patient = MethodSettings { wait_for_ready: Some(true), ..MethodSettings::default() };
    settings.methods.insert("t.v1.Fleet/Put".into(), patient);
    let fleet = Fleet::start(1, settings).await;
    fleet.instances[0].gate.kill();
    assert_eq!(fleet.call(GET).await.unwrap_err().code(), Code::Unavailable);
    let (answer, ()) = tokio::join!(fleet.call(PUT), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        fleet.instances[0].gate.revive();
    });
    assert_eq!(answer.unwrap(), "i-0");
}

#[tokio::test]
async fn a_slow_call_is_asked_of_a_second_instance() {
    let mut settings = ClientSettings::default();
    settings.hedge.delay = Duration::from_millis(10);
    settings.hedge.budget.ratio = 1.0;
    // The default would soon leave the slow one alone.
    settings.balance.policy = Policy::RoundRobin;
    let hedged = MethodSettings { hedge: Some(true), ..MethodSettings::default() };
    settings.methods.insert("t.v1.Fleet/Get".into(), hedged.clone());
    settings.methods.insert("t.v1.Fleet/Put".into(), hedged);
    let fleet = Fleet::start(2, settings).await;
    let slow = &fleet.instances[0].behaviour;
    for _ in 0..10 {
        assert!(fleet.call(GET).await.is_ok());
    }
    slow.delay(Duration::from_secs(30));
    for _ in 0..10 {
        assert_eq!(soon(fleet.call(GET)).await.unwrap(), "i-1");
    }
    let metrics = fleet.metrics();
    let hedges = metrics.lines().find(|line| line.starts_with("rpc_client_hedges_total"));
    assert!(hedges.is_some(), "{metrics}");
    // Those that were overtaken are cancelled at the server.
    let dropped = || slow.dropped.load(std::sync::atomic::Ordering::SeqCst);
    until(|| dropped() > 0).await;
    // What may have effects is never sent twice, whatever the settings say.
    let begun = slow.calls() + fleet.instances[1].behaviour.calls();
    let context = Context::root().with_deadline(Instant::now() + Duration::from_millis(100));
    let _ = context.scope(fleet.call(PUT)).await;
    assert_eq!(slow.calls() + fleet.instances[1].behaviour.calls(), begun + 1);
}

#[tokio::test]
async fn both_attempts_of_a_hedged_call_are_told() {
    let mut settings = ClientSettings::default();
    settings.hedge.delay = Duration::from_millis(5);
    settings.hedge.budget.ratio = 1.0;
    let hedged = MethodSettings { hedge: Some(true), ..MethodSettings::default() };
    settings.methods.insert("t.v1.Fleet/Get".into(), hedged);
    let fleet = Fleet::start(2, settings).await;
    for _ in 0..10 {
        assert!(fleet.call(GET).await.is_ok());
    }
    for instance in &fleet.instances {
        instance.behaviour.delay(Duration::from_millis(100));
        instance.behaviour.fail_with(Some(antiphon_core::Status::internal("broken")));
    }
    let status = fleet.call(GET).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    let source = status.source().unwrap().to_string();
    for instance in &fleet.instances {
        assert!(source.contains(&instance.gate.address().to_string()), "{source}");
    }
}

#[tokio::test]
async fn a_word_of_one_of_two_attempts_against_further_ones_holds_for_the_call() {
    let mut settings = ClientSettings::default();
    settings.hedge.delay = Duration::from_millis(5);
    settings.hedge.budget.ratio = 1.0;
    settings.balance.policy = Policy::RoundRobin;
    let hedged = MethodSettings { hedge: Some(true), ..MethodSettings::default() };
    settings.methods.insert("t.v1.Fleet/Get".into(), hedged);
    let fleet = Fleet::start(2, settings).await;
    soon(async { while fleet.call(PUT).await.unwrap() != "i-1" {} }).await;
    soon(async { while fleet.call(PUT).await.unwrap() != "i-0" {} }).await;
    soon(async { while fleet.call(PUT).await.unwrap() != "i-1" {} }).await;
    let [slow, busy] = [0, 1].map(|at| &fleet.instances[at].behaviour);
    slow.delay(Duration::from_millis(200));
    slow.fail_with(Some(unavailable(None)));
    busy.fail_with(Some(unavailable(Some(Retry::Never))));
    let calls = (slow.calls(), busy.calls());
    let status = fleet.call(GET).await.unwrap_err();
    assert_eq!((status.code(), status.retry()), (Code::Unavailable, Retry::Never));
    assert_eq!((slow.calls(), busy.calls()), (calls.0 + 1, calls.1 + 1));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_asks_for_ages_does_not_end_hedging_for_good() {
    let _clock = Clock::hold();
    let mut settings = ClientSettings::default();
    settings.hedge.delay = Duration::from_millis(5);
    settings.hedge.budget.ratio = 1.0;
    let hedged = MethodSettings { hedge: Some(true), ..MethodSettings::default() };
    settings.methods.insert("t.v1.Fleet/Get".into(), hedged);
    let fleet = Fleet::start(1, settings).await;
    let behaviour = &fleet.instances[0].behaviour;
    behaviour.fail_with(Some(unavailable(Some(Retry::After(Duration::MAX)))));
    let status = moving(fleet.call(GET)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    behaviour.delay(Duration::from_secs(600));
    let hedges = || fleet.count("rpc_client_hedges_total", "");
    let expired = Context::root().with_deadline(Instant::now() + Duration::from_millis(20));
    assert!(moving(expired.scope(fleet.call(GET))).await.is_err());
    assert_eq!(hedges(), 0);
    tokio::time::advance(Duration::from_secs(300)).await;
    moving(async {
        tokio::select! {
            _ = fleet.call(GET) => panic!("it takes ten minutes"),
            () = until(|| hedges() == 1) => {}
        }
    })
    .await;
}

#[tokio::test]
async fn more_calls_than_places_wait_and_then_are_refused() {
    let mut settings = ClientSettings::default();
    settings.bulkhead.in_flight_max = 2;
    settings.bulkhead.waiting_max = 1;
    let fleet = Fleet::start(1, settings).await;
    let behaviour = &fleet.instances[0].behaviour;
    assert!(fleet.call(GET).await.is_ok());
    behaviour.delay(Duration::from_millis(30));
    let (a, b, c, d) =
        tokio::join!(fleet.call(PUT), fleet.call(PUT), fleet.call(PUT), fleet.call(PUT));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    let refused = d.unwrap_err();
    assert!(refused.message().contains("too many calls"), "{refused}");
    assert_eq!(behaviour.calls(), 4);
}

#[tokio::test]
async fn a_call_is_small_enough_to_be_a_part_of_many_futures() {
    let fleet = Fleet::start(1, ClientSettings::default()).await;
    let request = StringValue::default;
    let unary = fleet.channel.unary::<_, StringValue>(GET, request());
    let stream = fleet.channel.server_stream::<_, StringValue>(COUNT, request());
    let sizes = (size_of_val(&unary), size_of_val(&stream));
    println!("bytes of a unary call, and of opening a stream: {sizes:?}");
    assert!(sizes.0 < 12_000 && sizes.1 < 4_000, "{sizes:?}");
}
