//! Clients of other languages call our server. `Get` has a retry policy in their service config: four
//! attempts for UNAVAILABLE, 10 to 20 ms apart. `Put` has none.

use std::time::Duration;

use antiphon_core::Code;
use antiphon_rpc::client::ClientSettings;
use antiphon_rpc::server::ServerSettings;
use antiphon_testing::proxy::Proxy;

use crate::contract::{Ask, PUT};
use crate::ours::{Ours, Running, server_settings};
use crate::process::{Client, Language};
use crate::{until, with_each};

with_each!(
    failures_are_tried_again,
    pushback_is_heard,
    a_call_that_is_shed_comes_back_when_it_was_told_to,
    deadlines_arrive_and_handlers_end_with_them,
    a_drain_fails_no_call,
    connections_that_grow_old_fail_no_call,
);

fn number(code: Code) -> Option<u8> {
    Some(code.number())
}

async fn failures_are_tried_again(language: Language) {
    let ours = Running::start("ours", server_settings()).await;
    let mut client = Client::start(language, &[ours.address]);
    let outcome = client.call("Get", &Ask { fails: 2, ..Ask::id("get") }).await;
    let answer = outcome.answer.unwrap();
    assert_eq!((answer.attempt, answer.previous), (3, 2));
    let outcome = client.call("Put", &Ask { fails: 1, ..Ask::id("put") }).await;
    assert_eq!(outcome.code, number(Code::Unavailable));
    assert_eq!(ours.journal.of("put").at.len(), 1);
}

async fn pushback_is_heard(language: Language) {
    let ours = Running::start("ours", server_settings()).await;
    let mut client = Client::start(language, &[ours.address]);
    let later = Ask { fails: 1, pushback: Some("300".into()), ..Ask::id("later") };
    let outcome = client.call("Get", &later).await;
    assert_eq!(outcome.answer.unwrap().attempt, 2);
    let at = ours.journal.of("later").at;
    assert!(at[1] - at[0] >= 295.0, "{at:?}");
    let never = Ask { fails: 9, pushback: Some("-1".into()), ..Ask::id("never") };
    let outcome = client.call("Get", &never).await;
    assert_eq!(outcome.code, number(Code::Unavailable));
    assert_eq!(ours.journal.of("never").at.len(), 1);
}

/// A server with all hands full asks to be left alone for a moment.
async fn a_call_that_is_shed_comes_back_when_it_was_told_to(language: Language) {
    let ours = Running::start("ours", ServerSettings { calls_max: 1, ..server_settings() }).await;
    let patient = ClientSettings { timeout: Duration::from_secs(30), ..ClientSettings::default() };
    let busy = Ours::new(&[ours.address], patient);
    let mut client = Client::start(language, &[ours.address]);
    let ask = Ask::id("shed");
    let endless = Ask { waits_ms: 29_000, ..Ask::id("busy") };
    let keep_busy = async {
        tokio::select! {
            answer = busy.call(PUT, &endless) => {
                panic!("nobody was shed: {answer:?}");
            }
            () = until(async || shed(&ours) > 0) => {}
        }
    };
    let call = async {
        until(async || ours.journal.of("busy").at.len() == 1).await;
        client.call("Get", &ask).await
    };
    let (outcome, ()) = tokio::join!(call, keep_busy);
    // Fifty milliseconds at least; more where the place was not free yet by then.
    assert!(outcome.took_ms >= 45.0, "{outcome:?}");
    let answer = outcome.answer.unwrap();
    assert_eq!(answer.attempt, 1, "only one was let in");
    assert!(answer.previous >= 1 && shed(&ours) == u64::from(answer.previous), "{answer:?}");
}

fn shed(ours: &Running) -> u64 {
    let metrics = ours.metrics();
    let lines = metrics.lines().filter(|line| line.starts_with("rpc_server_shed_total"));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

async fn deadlines_arrive_and_handlers_end_with_them(language: Language) {
    let ours = Running::start("ours", server_settings()).await;
    let mut client = Client::start(language, &[ours.address]);
    assert!(client.call("Put", &Ask::default()).await.answer.is_some());
    let late = Ask { waits_ms: 120_000, ..Ask::id("late") };
    let outcome = client.call_within("Put", &late, 1_500).await;
    assert_eq!(outcome.code, number(Code::DeadlineExceeded), "{outcome:?}");
    let remaining = ours.journal.remaining.lock().unwrap();
    // grpcio rounds up, to 151 hundredths of a second.
    let range = Duration::from_millis(1)..=Duration::from_millis(1_550);
    assert!(range.contains(&remaining), "{remaining:?}");
    until(async || ours.journal.of("late").cancelled == 1).await;
    // Longer than it takes to arrive, however busy the machine is.
    let gone = Ask { waits_ms: 120_000, ..Ask::id("gone") };
    let outcome = client.call_and_cancel("Put", &gone, 1_500).await;
    assert_eq!(outcome.code, number(Code::Cancelled), "{outcome:?}");
    until(async || ours.journal.of("gone").cancelled == 1).await;
}

/// Of a method that they do not try again.
async fn a_drain_fails_no_call(language: Language) {
    let leaving = Running::start("leaving", server_settings()).await;
    let staying = Running::start("staying", server_settings()).await;
    let mut client = Client::start(language, &[leaving.address, staying.address]);
    client.load("Put", &Ask { waits_ms: 2, ..Ask::default() }, 16).await;
    more(&mut client, "leaving", 200).await;
    more(&mut client, "staying", 200).await;
    leaving.leave().await;
    more(&mut client, "staying", 500).await;
    let load = client.stop().await;
    assert!(load.failures.is_empty(), "{load:?}");
}

async fn connections_that_grow_old_fail_no_call(language: Language) {
    let age = Duration::from_secs(1);
    let settings = ServerSettings { connection_age_max: age, ..server_settings() };
    let ours = Running::start("old", settings).await;
    let gate = Proxy::to(ours.address).await.unwrap();
    let mut client = Client::start(language, &[gate.address()]);
    client.load("Put", &Ask { waits_ms: 2, ..Ask::default() }, 16).await;
    until(async || gate.counts().connections > 2).await;
    more(&mut client, "old", 100).await;
    let load = client.stop().await;
    assert!(load.failures.is_empty(), "{load:?}");
}

/// Waits until a server has answered so many more calls; fails where one failed.
async fn more(client: &mut Client, name: &str, calls: u64) {
    let goal = client.look().await.by(name) + calls;
    crate::soon(async {
        loop {
            let load = client.look().await;
            assert!(load.failures.is_empty(), "{load:?}");
            if load.by(name) >= goal {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
