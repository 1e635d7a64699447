//! What happens when the server or the network fails. Each has a server of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_broker_rabbitmq::{RabbitmqBroker, Settings};
use antiphon_messaging::{Broker, Message, PublishErrorKind, Sent};
use antiphon_testing::proxy::{Faults, Proxy, Way};
use antiphon_testing::services::{Private, Service};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::support::{
    PATIENCE, ctl, fetch, handle, join, lost, message, open, publish, text, topology,
};

async fn private() -> Private {
    Private::start(Service::Rabbitmq).await.unwrap_or_else(|why| unreachable!("{why}"))
}

/// Sends until it is taken, as the relay does: the same message with the same id.
async fn persist(broker: &RabbitmqBroker, message: Message) -> usize {
    let mut failures = 0;
    while let Err(error) = publish(broker, message.clone()).await {
        assert!(!error.is_permanent(), "{error:?}");
        failures += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    failures
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_messages_survive_three_restarts_in_the_order_of_their_keys() {
    const TASKS: usize = 20;
    const EACH: usize = 500;
    let server = private().await;
    let broker = open(Settings::at(server.url())).await;
    broker.declare(&topology("t", &["g"], true)).await.unwrap();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let broker = broker.clone();
        tasks.spawn(async move {
            let mut failures = 0;
            for n in 0..EACH {
                let message = message("t", &format!("key-{task}"), &format!("{task}/{n}"));
                failures += persist(&broker, message).await;
                // So that it takes long enough for three restarts.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            failures
        });
    }
    for restart in 0..3 {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        if restart == 1 {
            server.kill().await.unwrap();
        } else {
            server.stop().await.unwrap();
        }
        server.start_again().await.unwrap();
    }
    let mut failures = 0;
    while let Some(task) = tasks.join_next().await {
        failures += task.unwrap();
    }
    assert!(failures > 0, "the restarts were noticed");

    // Repetitions are what an inbox takes out: the first of each counts.
    let mut source = join(&broker, "t", "g", true).await;
    let mut next: BTreeMap<String, usize> = BTreeMap::new();
    let mut count = 0;
    while count < TASKS * EACH {
        let deliveries = fetch(&mut source, 500).await;
        for delivery in deliveries {
            let text = text(&delivery);
            let (task, n) = text.split_once('/').unwrap();
            let (next, n) = (next.entry(task.to_owned()).or_default(), n.parse::<usize>().unwrap());
            assert!(n <= *next, "{text} came before {next}");
            if n == *next {
                *next += 1;
                count += 1;
            }
            crate::support::ack(delivery).await;
        }
    }
    assert!(next.values().all(|next| *next == EACH));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_confirmation_leaves_the_outcome_open_and_the_message_is_there() {
    let (server, proxy) =
        Private::behind_proxy(Service::Rabbitmq).await.unwrap_or_else(|why| unreachable!("{why}"));
    let mut settings = Settings::at(proxy.url());
    settings.publish_timeout = Duration::from_secs(2).into();
    let broker = open(settings).await;
    broker.declare(&topology("t", &["g"], true)).await.unwrap();
    let _receipt = publish(&broker, message("t", "k", "before")).await.unwrap();
    proxy.set(Faults { to_client: Way { swallow: true, ..Way::default() }, ..Faults::default() });
    let unsure = message("t", "k", "unsure");
    let error = publish(&broker, unsure.clone()).await.unwrap_err();
    assert_eq!((error.kind, error.sent), (PublishErrorKind::Disconnected, Sent::Maybe));
    proxy.heal();
    persist(&broker, unsure).await;
    assert!(proxy.counts().swallowed > 0, "the fault bit: {}", proxy.counts());
    let direct = open(Settings::at(server.url())).await;
    let mut source = join(&direct, "t", "g", true).await;
    assert_eq!(handle(&mut source, 3).await, ["before", "unsure", "unsure"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_ends_members_and_they_can_join_again() {
    let server = private().await;
    let proxy = Proxy::in_front_of(&server.url()).await.unwrap();
    let broker = open(Settings::at(proxy.url())).await;
    for ordered in [true, false] {
        let (topic, group) = (format!("t-{ordered}"), format!("g-{ordered}"));
        broker.declare(&topology(&topic, &[&group], ordered)).await.unwrap();
        let mut source = join(&broker, &topic, &group, ordered).await;
        persist(&broker, message(&topic, "k", "held")).await;
        let held = fetch(&mut source, 1).await;
        proxy.reset();
        let reason = lost(&mut source).await;
        assert!(!reason.is_empty());
        drop(held);
        let joined = async {
            loop {
                let subscription = antiphon_messaging::Subscription {
                    group: group.clone(),
                    topics: vec![topic.clone()],
                    ordered,
                };
                match broker.subscribe(subscription).await {
                    Ok(source) => return source,
                    Err(error) => assert!(error.transient, "{error}"),
                }
            }
        };
        let mut source = timeout(PATIENCE, joined).await.expect("joined again");
        assert_eq!(handle(&mut source, 1).await, ["held"]);
    }
    // Closed by the server, as an operator does it.
    let mut source = join(&broker, "t-true", "g-true", true).await;
    ctl(&server, &["close_all_connections", "maintenance"]).await;
    lost(&mut source).await;
    persist(&broker, message("t-true", "k", "after")).await;
    assert!(proxy.counts().reset > 0, "the fault bit: {}", proxy.counts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_memory_makes_publishers_wait_and_nobody_else() {
    let server = private().await;
    let mut settings = Settings::at(server.url());
    settings.publish_timeout = Duration::from_secs(3).into();
    let broker = open(settings).await;
    broker.declare(&topology("t", &["g"], true)).await.unwrap();
    broker.declare(&topology("t", &["h"], true)).await.unwrap();
    let mut early = join(&broker, "t", "g", true).await;
    for n in 0..10 {
        let _receipt = publish(&broker, message("t", "k", &n.to_string())).await.unwrap();
    }
    assert_eq!(handle(&mut early, 5).await.len(), 5);
    ctl(&server, &["set_vm_memory_high_watermark", "0.0001"]).await;
    let begun = Instant::now();
    let mut kinds = Vec::new();
    // The first may still get through: the server blocks whoever publishes, when they do.
    while !kinds.contains(&PublishErrorKind::Overloaded) {
        assert!(begun.elapsed() < PATIENCE, "{kinds:?}");
        if let Err(error) = publish(&broker, message("t", "k", "x")).await {
            kinds.push(error.kind);
        }
    }
    // Whoever consumes helps the server, and is not blocked with the others: neither who was there
    // before, nor who comes now and can say hello to nobody.
    assert_eq!(handle(&mut early, 5).await.len(), 5);
    timeout(PATIENCE, broker.declare(&topology("t", &["h"], true))).await.unwrap().unwrap();
    let mut late = join(&broker, "t", "h", true).await;
    assert_eq!(handle(&mut late, 10).await.len(), 10);
    ctl(&server, &["set_vm_memory_high_watermark", "0.6"]).await;
    let failures = persist(&broker, message("t", "k", "after")).await;
    assert!(failures < 200, "it recovers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_own_limit_is_learnt_and_the_other_messages_get_through() {
    let server = private().await;
    ctl(&server, &["eval", "application:set_env(rabbit, max_message_size, 20000)."]).await;
    let broker = open(Settings::at(server.url())).await;
    broker.declare(&topology("t", &["g"], false)).await.unwrap();
    let large = message("t", "large", &"x".repeat(30_000));
    let batch = vec![message("t", "a", "a"), large.clone(), message("t", "b", "b")];
    let answers = broker.publish(batch).await;
    let error = answers[1].as_ref().unwrap_err();
    assert_eq!((error.kind, error.sent), (PublishErrorKind::TooLarge, Sent::No));
    // The channel was closed under the others: they may be there, and are sent again.
    for answer in [&answers[0], &answers[2]] {
        assert!(answer.as_ref().err().is_none_or(|error| error.sent == Sent::Maybe), "{answer:?}");
    }
    let error = publish(&broker, large).await.unwrap_err();
    assert!(error.source.is_some_and(|source| source.to_string().contains("20000")));
    let _receipt = publish(&broker, message("t", "c", "c")).await.unwrap();
}
