//! What operators see.

use antiphon_core::{Finding, Severity};
use antiphon_messaging::{Broker, Topology};
use antiphon_testing::services::{Private, Service};

use crate::custom::Mosquitto;
use crate::scratch::Scratch;
use crate::support::{at, declare, handle, join, message, open, publish};

fn about<'a>(findings: &'a [Finding], subject: &str) -> &'a Finding {
    let found = findings.iter().find(|one| one.subject == subject);
    found.unwrap_or_else(|| unreachable!("nothing about {subject}: {findings:?}"))
}

#[tokio::test]
async fn topics_and_groups_are_listed_whether_or_not_anybody_is_there() {
    let scratch = Scratch::new();
    let broker = scratch.open().await;
    declare(&broker, "b", "readers of b").await;
    declare(&broker, "a/+", "readers of a").await;
    let member = join(&broker, "b", "readers of b").await;
    // Another process sees the same.
    let operate = scratch.open().await.operate().expect("it can be looked at");
    let topics = operate.topics().await.expect("topics are listed");
    assert_eq!(topics.iter().map(|one| &*one.name).collect::<Vec<_>>(), ["a/+", "b"]);
    assert!(topics.iter().all(|one| one.messages.is_none()), "MQTT does not tell");
    let groups = operate.groups().await.expect("groups are listed");
    let seen: Vec<_> = groups.iter().map(|one| (&*one.name, one.members, one.lag)).collect();
    assert_eq!(seen, [("readers of a", Some(0), None), ("readers of b", Some(1), None)]);
    assert_eq!(groups[0].topics, ["a/+"]);
    drop(member);
}

#[tokio::test]
async fn a_running_server_is_described_with_what_to_change() {
    let scratch = Scratch::new();
    let broker = scratch.open().await;
    let topology = Topology { topics: vec!["unread".into()], groups: Vec::new() };
    broker.declare(&topology).await.expect("it is declared");
    let findings = broker.operate().expect("it can be looked at").findings().await;
    assert_eq!(about(&findings, "connection").severity, Severity::Fine);
    assert!(about(&findings, "version").text.contains("mosquitto"), "{findings:?}");
    let durability = about(&findings, "durability");
    assert_eq!(durability.severity, Severity::Warning);
    assert!(durability.advice.as_ref().is_some_and(|text| text.contains("autosave_on_changes")));
    assert!(about(&findings, "topic unread").text.contains("no group reads it"));
}

#[tokio::test]
async fn a_stopped_server_is_the_finding() {
    let server = Private::start(Service::Mosquitto).await.expect("a server");
    let scratch = Scratch::new();
    let broker = open(at(&scratch.settings, &server.url())).await;
    server.stop().await.expect("it stops");
    let findings = broker.operate().expect("it can be looked at").findings().await;
    let [finding] = findings.as_slice() else { panic!("{findings:?}") };
    assert_eq!((finding.severity, &*finding.subject), (Severity::Problem, "connection"));
    assert!(finding.text.contains("127.0.0.1"), "{finding}");
}

/// Mosquitto confirms messages that it throws away because a queue is full. Nothing tells the one
/// who sent them; the finding is all there is.
#[tokio::test]
async fn messages_that_the_server_has_thrown_away_are_a_finding() {
    let server = Mosquitto::start("max_queued_messages 5\nsys_interval 1");
    let scratch = Scratch::new();
    let broker = open(at(&scratch.settings, &server.url())).await;
    declare(&broker, "t", "g").await;
    for n in 0..20 {
        let sent = publish(&broker, message("t", "k", &n.to_string())).await;
        let _receipt = sent.expect("the server says that it has it");
    }
    let operate = broker.operate().expect("it can be looked at");
    let thrown_away = async {
        loop {
            let findings = operate.findings().await;
            let queues = about(&findings, "queues").clone();
            if queues.severity == Severity::Warning {
                return queues;
            }
            tokio::task::yield_now().await;
        }
    };
    let within = tokio::time::timeout(crate::support::PATIENCE, thrown_away);
    let finding = within.await.expect("the server tells after a second");
    assert!(finding.text.contains("thrown away"), "{finding}");
    assert!(finding.advice.is_some_and(|advice| advice.contains("max_queued_messages 0")));
}

#[tokio::test]
async fn a_removed_group_keeps_nothing_and_a_removed_topic_takes_nothing() {
    let scratch = Scratch::new();
    let broker = scratch.open().await;
    declare(&broker, "t", "g").await;
    let _receipt = publish(&broker, message("t", "k", "old")).await.expect("it is taken");
    broker.remove_group("g").await.expect("it is removed");
    let operate = broker.operate().expect("it can be looked at");
    assert_eq!(operate.groups().await.expect("groups are listed"), []);
    declare(&broker, "t", "g").await;
    let _receipt = publish(&broker, message("t", "k", "new")).await.expect("it is taken");
    let mut source = join(&broker, "t", "g").await;
    assert_eq!(handle(&mut source, 1).await, ["new"]);
    broker.remove_topic("t").await.expect("it is removed");
    publish(&broker, message("t", "k", "x")).await.expect_err("there is no such topic");
}
