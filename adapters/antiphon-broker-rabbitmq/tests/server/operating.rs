//! What an operator sees.

use antiphon_broker_rabbitmq::Settings;
use antiphon_core::{Finding, Severity};
use antiphon_messaging::Broker;
use antiphon_testing::services::{Private, Service};
use tokio::time::timeout;

use crate::support::{PATIENCE, ctl, handle, join, message, open, publish, topology};

fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(|finding| finding.severity).max().expect("something is found")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_groups_and_findings_are_those_of_the_server() {
    let server =
        Private::start(Service::Rabbitmq).await.unwrap_or_else(|why| unreachable!("{why}"));
    let settings = Settings::at(server.url());
    let broker = open(settings.clone()).await;
    let operate = broker.operate().unwrap();
    assert!(operate.topics().await.unwrap().is_empty());
    broker.declare(&topology("shop.orders", &["audit"], false)).await.unwrap();
    broker.declare(&topology("shop.orders", &["billing"], true)).await.unwrap();
    broker.declare(&topology("shop.mails", &[], false)).await.unwrap();
    for n in 0..10 {
        let message = message("shop.orders", &format!("key-{n}"), "x");
        let _receipt = publish(&broker, message).await.unwrap();
    }
    let mut source = join(&broker, "shop.orders", "billing", true).await;
    handle(&mut source, 10).await;

    // Another process, which has declared nothing.
    let operate = open(settings).await.operate().unwrap();
    let topics = operate.topics().await.unwrap();
    let names: Vec<&str> = topics.iter().map(|topic| topic.name.as_str()).collect();
    assert_eq!(names, ["shop.mails", "shop.orders"]);
    let groups = operate.groups().await.unwrap();
    let [audit, billing] = groups.as_slice() else { unreachable!("two groups: {groups:?}") };
    assert_eq!((audit.name.as_str(), audit.lag, audit.members), ("audit", Some(10), Some(0)));
    assert_eq!((billing.name.as_str(), billing.lag), ("billing", Some(0)));
    assert_eq!(billing.members, Some(1), "{billing:?}");
    assert_eq!(billing.topics, ["shop.orders"]);

    let findings = operate.findings().await;
    assert_eq!(worst(&findings), Severity::Warning, "{findings:?}");
    assert!(findings.iter().any(|finding| finding.subject == "version"), "{findings:?}");
    ctl(&server, &["delete_queue", "audit"]).await;
    let findings = operate.findings().await;
    let gone = findings.iter().find(|finding| finding.subject == "group audit");
    assert!(gone.is_some_and(|finding| finding.severity == Severity::Problem), "{findings:?}");

    server.stop().await.unwrap();
    let findings = timeout(PATIENCE, operate.findings()).await.expect("an answer in any case");
    assert_eq!(worst(&findings), Severity::Problem, "{findings:?}");
    assert!(findings[0].advice.as_ref().is_some_and(|text| text.contains("start the server")));
    assert!(operate.groups().await.is_err());
}
