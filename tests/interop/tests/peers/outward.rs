//! Our client calls servers of other languages.

use std::time::Duration;

use antiphon_core::{Code, Context, Retry, Status};
use antiphon_rpc::client::ClientSettings;
use antiphon_testing::proxy::Proxy;
use buffa_types::google::protobuf::StringValue;
use futures_util::StreamExt;
use tokio::time::Instant;

use crate::contract::{Ask, COUNT, GET, PUT};
use crate::ours::{Ours, ask_of};
use crate::process::{Language, PeerSettings, Server};
use crate::{soon, until, with_each};

with_each!(
    the_context_arrives,
    failures_are_tried_again_where_that_is_harmless,
    the_server_chooses_the_wait,
    the_server_forbids_another_attempt,
    nothing_runs_on_at_the_server_after_the_caller_gave_up,
    a_server_that_leaves_fails_no_call,
    connections_that_the_server_lets_grow_old_fail_no_call,
    messages_that_are_too_large_are_refused_and_nothing_else,
    a_server_that_compresses_is_understood,
    streams_arrive_and_are_cancelled,
    pings_that_the_server_allows_keep_a_quiet_call,
    a_server_that_minds_pings_is_asked_less_often,
);

/// A server, and our client of it.
async fn peer(language: Language, settings: ClientSettings) -> (Server, Ours) {
    peer_with(language, PeerSettings::default(), settings).await
}

async fn peer_with(
    language: Language,
    peer: PeerSettings,
    settings: ClientSettings,
) -> (Server, Ours) {
    let server = Server::start(language, &peer).await;
    let ours = Ours::new(&[server.address], settings);
    (server, ours)
}

async fn within<T>(millis: u64, call: impl Future<Output = T>) -> T {
    let deadline = Instant::now() + Duration::from_millis(millis);
    Context::root().with_deadline(deadline).scope(call).await
}

fn named(name: &str) -> PeerSettings {
    PeerSettings { name: name.into(), ..PeerSettings::default() }
}

fn settings() -> ClientSettings {
    // A busy machine is slow.
    let mut settings =
        ClientSettings { timeout: Duration::from_secs(40), ..ClientSettings::default() };
    // Servers fail here because they are told to.
    settings.ejection.consecutive_failures = 0;
    settings
}

async fn the_context_arrives(language: Language) {
    let (_server, ours) = peer(language, settings()).await;
    let ask = Ask::id("1");
    // The first call may wait for the connection.
    ours.call(GET, &ask).await.unwrap();
    let answer = within(8_000, ours.call(GET, &ask)).await.unwrap();
    assert_eq!((answer.attempt, answer.previous), (2, 0));
    let remaining = answer.remaining_ms.unwrap();
    assert!((4_000.0..8_000.0).contains(&remaining), "{remaining}");
}

async fn failures_are_tried_again_where_that_is_harmless(language: Language) {
    let (_server, ours) = peer(language, settings()).await;
    let answer = ours.call(GET, &Ask { fails: 2, ..Ask::id("get") }).await.unwrap();
    assert_eq!((answer.attempt, answer.previous), (3, 2));
    let status = ours.call(PUT, &Ask { fails: 1, ..Ask::id("put") }).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "not now"));
    assert_eq!(ours.seen("put").await.at.len(), 1);
    let status = ours.call(GET, &Ask { fails: 9, ..Ask::id("never") }).await.unwrap_err();
    assert_eq!((status.code(), status.retry()), (Code::Unavailable, Retry::Never));
    assert_eq!(ours.seen("never").await.at.len(), 3);
}

async fn the_server_chooses_the_wait(language: Language) {
    let (_server, ours) = peer(language, settings()).await;
    let wait = |id: &str| Ask { fails: 1, pushback: Some("250".into()), ..Ask::id(id) };
    let mut gaps = Vec::new();
    for id in ["a", "b", "c", "d"] {
        let answer = ours.call(GET, &wait(id)).await.unwrap();
        assert_eq!((answer.attempt, answer.previous), (2, 1));
        let at = ours.seen(id).await.at;
        gaps.push(at[1] - at[0]);
    }
    // Our own first wait would be 60 ms at the most; a busy machine makes waits longer, but hardly all.
    assert!(gaps.iter().all(|gap| *gap >= 250.0), "{gaps:?}");
    assert!(gaps.iter().any(|gap| *gap < 400.0), "{gaps:?}");
}

async fn the_server_forbids_another_attempt(language: Language) {
    let (_server, ours) = peer(language, settings()).await;
    let ask = Ask { fails: 9, pushback: Some("-1".into()), ..Ask::id("1") };
    let status = ours.call(GET, &ask).await.unwrap_err();
    assert_eq!((status.code(), status.retry()), (Code::Unavailable, Retry::Never));
    assert_eq!(ours.seen("1").await.at.len(), 1);
}

async fn nothing_runs_on_at_the_server_after_the_caller_gave_up(language: Language) {
    let (_server, ours) = peer(language, settings()).await;
    ours.call(GET, &Ask::default()).await.unwrap();
    let late = Ask { waits_ms: 120_000, ..Ask::id("late") };
    let status = soon(Box::pin(within(500, ours.call(GET, &late)))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    until(async || ours.seen("late").await.cancelled == 1).await;
    let dropped = Ask { waits_ms: 120_000, ..Ask::id("dropped") };
    tokio::select! {
        answer = ours.call(PUT, &dropped) => panic!("it takes minutes: {answer:?}"),
        () = until(async || ours.seen("dropped").await.at.len() == 1) => {}
    }
    until(async || ours.seen("dropped").await.cancelled == 1).await;
    assert_eq!(ours.seen("late").await.at.len(), 1, "an expired call is not tried again");
}

/// Of a method that nobody may do twice: nothing but the order of leaving keeps its calls from failing.
async fn a_server_that_leaves_fails_no_call(language: Language) {
    let leaving = Server::start(language, &named("leaving")).await;
    let staying = Server::start(language, &named("staying")).await;
    let ours = Ours::new(&[leaving.address, staying.address], settings());
    let load = ours.load(PUT, &Ask { waits_ms: 2, ..Ask::default() }, 16);
    load.more("leaving", 200).await;
    load.more("staying", 200).await;
    leaving.leave().await;
    load.more("staying", 500).await;
    // A grpcio server that stops answers CANCELLED to what it has received and not begun, whoever the
    // client is. That is no answer by which a call may be made again.
    let cancels = language == Language::Python;
    load.end_without_failure_but(|status| cancels && status.code() == Code::Cancelled).await;
}

async fn connections_that_the_server_lets_grow_old_fail_no_call(language: Language) {
    let settings_of_peer = PeerSettings { age_ms: Some(1_000), ..named("old") };
    let server = Server::start(language, &settings_of_peer).await;
    let gate = Proxy::to(server.address).await.unwrap();
    let ours = Ours::new(&[gate.address()], settings());
    let load = ours.load(PUT, &Ask { waits_ms: 2, ..Ask::default() }, 16);
    until(async || gate.counts().connections > 2).await;
    load.more("old", 100).await;
    load.end_without_failure().await;
}

async fn messages_that_are_too_large_are_refused_and_nothing_else(language: Language) {
    let limit = ClientSettings { message_bytes_max: 64 * 1024, ..settings() };
    let (_server, ours) = peer(language, limit).await;
    let status = ours.call(GET, &Ask { bytes: 100_000, ..Ask::id("1") }).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("65536"), "{status}");
    let large = Ask::id(&"x".repeat(5 * 1024 * 1024));
    let status = soon(ours.call(GET, &large)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert_eq!(ours.call(GET, &Ask::id("1")).await.unwrap().attempt, 2);
    assert_eq!(ours.call(GET, &Ask { bytes: 60_000, ..Ask::id("1") }).await.unwrap().attempt, 3);
}

async fn a_server_that_compresses_is_understood(language: Language) {
    let compresses = PeerSettings { compresses: true, ..named("zip") };
    let (_server, ours) = peer_with(language, compresses, settings()).await;
    let answer = ours.call(GET, &Ask { bytes: 50_000, ..Ask::id("1") }).await.unwrap();
    assert_eq!(answer.padding.len(), 50_000);
    let request = ask_of(&Ask { counts: 20, bytes: 5_000, ..Ask::id("2") });
    let stream = ours.channel.server_stream::<_, StringValue>(COUNT, request).await.unwrap();
    let answers: Vec<Result<StringValue, Status>> = soon(stream.collect()).await;
    assert_eq!(answers.len(), 20);
    let last = answers.into_iter().map(Result::unwrap).next_back().unwrap().value;
    assert_eq!((last.len(), last.trim()), (5_000, "19"));
}

async fn streams_arrive_and_are_cancelled(language: Language) {
    let (_server, ours) = peer(language, settings()).await;
    let ask = Ask { counts: 1_000, bytes: 500, waits_ms: 120_000, ..Ask::id("1") };
    let open = || ours.channel.server_stream::<_, StringValue>(COUNT, ask_of(&ask));
    let mut stream = open().await.unwrap();
    for number in 0..1_000 {
        let message = soon(stream.next()).await.unwrap().unwrap().value;
        assert_eq!(message.trim(), number.to_string());
    }
    drop(stream);
    until(async || ours.seen("1").await.cancelled == 1).await;
    let mut stream = within(1_500, open()).await.unwrap();
    let status = soon(async {
        loop {
            if let Err(status) = stream.next().await.unwrap() {
                break status;
            }
        }
    })
    .await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    until(async || ours.seen("1").await.cancelled == 2).await;
}

/// The default is 30 s.
fn fast_pings() -> ClientSettings {
    ClientSettings { keep_alive_interval: Duration::from_millis(100), ..settings() }
}

async fn pings_that_the_server_allows_keep_a_quiet_call(language: Language) {
    let allows = PeerSettings { pings_apart_ms: Some(10), ..named("quiet") };
    let server = Server::start(language, &allows).await;
    let gate = Proxy::to(server.address).await.unwrap();
    let ours = Ours::new(&[gate.address()], fast_pings());
    let answer = ours.call(PUT, &Ask { waits_ms: 1_500, ..Ask::id("1") }).await.unwrap();
    assert_eq!((answer.attempt, gate.counts().connections), (1, 1));
}

/// The default of grpc-go and grpcio is one ping in five minutes; who sends more is cut off with
/// GOAWAY and ENHANCE_YOUR_CALM at the fourth. grpc-js does not mind.
async fn a_server_that_minds_pings_is_asked_less_often(language: Language) {
    let minds = PeerSettings { pings_apart_ms: Some(300_000), ..named("strict") };
    let server = Server::start(language, &minds).await;
    let gate = Proxy::to(server.address).await.unwrap();
    let ours = Ours::new(&[gate.address()], fast_pings());
    // Cut off after 400 ms, then after 800, then not within its time.
    let quiet = |id| Ask { waits_ms: 1_200, ..Ask::id(id) };
    let answer = soon(ours.call(GET, &quiet("1"))).await.unwrap();
    let connections = gate.counts().connections;
    if language == Language::Node {
        assert_eq!((answer.attempt, connections), (1, 1));
    } else {
        assert!(answer.attempt > 1 && connections > 1, "{answer:?}, {connections}");
    }
    // Now it is known how much it stands, and nothing is cut off that may not be done twice.
    let answer = soon(ours.call(PUT, &quiet("2"))).await.unwrap();
    assert_eq!((answer.attempt, gate.counts().connections), (1, connections), "{}", ours.metrics());
}
