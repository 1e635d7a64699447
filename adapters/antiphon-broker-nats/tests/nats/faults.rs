//! A network and a server that fail: nothing is lost, and what is late has no say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::common::{
    PATIENCE, clean_up, collect, join, lost, message, open, settings, text, topic,
};
use antiphon_broker_nats::{NatsBroker, Settings};
use antiphon_config::HumanDuration;
use antiphon_messaging::{
    Broker, Fetched, Message, PublishErrorKind, Sent, Settled, Settlement, Source,
};
use antiphon_testing::proxy::{Faults, Proxy, Way};
use antiphon_testing::services::{Private, Service};
use tokio::time::{Instant, timeout};

/// A broker behind a proxy, with settings that notice things quickly.
async fn behind_proxy() -> (NatsBroker, Proxy) {
    let proxy = Proxy::in_front_of(&Service::Nats.url()).await.expect("a proxy");
    let settings = Settings {
        url: proxy.url().to_owned(),
        publish_timeout: HumanDuration::from_millis(500),
        lease: HumanDuration::from_secs(2),
        ack_wait: HumanDuration::from_secs(2),
        ..Settings::default()
    };
    (open(settings).await, proxy)
}

fn swallow_answers() -> Faults {
    Faults { to_client: Way { swallow: true, ..Way::default() }, ..Faults::default() }
}

fn swallow_all() -> Faults {
    Faults::both(Way { swallow: true, ..Way::default() })
}

/// Publishes until it is confirmed, as the relay does; says whether the outcome was ever unknown.
async fn publish_surely(broker: &NatsBroker, message: Message) -> bool {
    let mut unknown = false;
    loop {
        let answers = broker.publish(vec![message.clone()]).await;
        match answers.into_iter().next().expect("an answer") {
            Ok(_) => return unknown,
            Err(error) => {
                assert!(!error.is_permanent(), "{error:?}");
                unknown |= error.sent == Sent::Maybe;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_confirmation_is_unknown_and_sending_again_makes_no_second_message() {
    let (broker, proxy) = behind_proxy().await;
    let topic = topic(&broker, true).await;
    proxy.set(swallow_answers());
    let sent = message(&topic, "k", "once");
    let answers = broker.publish(vec![sent.clone()]).await;
    let error = answers.into_iter().next().expect("an answer").expect_err("nothing is confirmed");
    assert_eq!((error.kind, error.sent), (PublishErrorKind::Disconnected, Sent::Maybe));
    assert!(proxy.counts().swallowed > 0, "the fault bit");
    proxy.heal();
    timeout(PATIENCE, publish_surely(&broker, sent)).await.expect("it recovers");
    timeout(PATIENCE, publish_surely(&broker, message(&topic, "k", "next")))
        .await
        .expect("it goes on");
    let mut member = join(&broker, &topic, true).await;
    let texts: Vec<String> = collect(&mut member, 2).await.iter().map(text).collect();
    assert_eq!(texts, ["once", "next"]);
    clean_up(&broker);
}

/// Cuts the connection while messages are held; what was settled stays settled, the rest comes again.
async fn a_cut_connection_loses_nothing(ordered: bool) {
    let (broker, proxy) = behind_proxy().await;
    let topic = topic(&broker, ordered).await;
    for n in 0..40 {
        publish_surely(&broker, message(&topic, &format!("key-{}", n % 7), &n.to_string())).await;
    }
    let mut first = join(&broker, &topic, ordered).await;
    let mut handled = BTreeSet::new();
    let mut held = collect(&mut first, 20).await;
    for delivery in held.drain(..10) {
        handled.insert(text(&delivery));
        let _ = delivery.settle(Settlement::Ack).outcome().await;
    }
    if ordered {
        // What is done is written down a moment later.
        tokio::time::sleep(Duration::from_millis(500)).await;
    } else {
        // Acknowledgements travel in order; once this is answered they have arrived.
        publish_surely(&broker, message(&topic, "", "40")).await;
    }
    proxy.reset();
    lost(&mut first).await;
    for delivery in held {
        let settled = timeout(PATIENCE, delivery.settle(Settlement::Ack).outcome()).await;
        assert_eq!(settled.expect("an answer"), Settled::Stale);
    }
    drop(first);
    let mut second = join(&broker, &topic, ordered).await;
    let rest = if ordered { 30 } else { 31 };
    for delivery in collect(&mut second, rest).await {
        assert!(handled.insert(text(&delivery)), "{} was handled", text(&delivery));
        assert_ne!(delivery.settle(Settlement::Ack).outcome().await, Settled::Stale);
    }
    assert!(timeout(Duration::from_millis(300), second.fetch(1)).await.is_err(), "that was all");
    clean_up(&broker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_loses_nothing_of_a_shared_group() {
    a_cut_connection_loses_nothing(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_loses_nothing_of_an_ordered_group() {
    a_cut_connection_loses_nothing(true).await;
}

/// A member that nobody hears of any more loses its lanes after its lease, and before anybody else
/// handles what it held it knows.
#[tokio::test(flavor = "multi_thread")]
async fn the_lanes_of_a_silent_member_go_to_another_in_order() {
    let (silent, proxy) = behind_proxy().await;
    let healthy = open(Settings { lease: HumanDuration::from_secs(2), ..settings() }).await;
    let topic = topic(&healthy, true).await;
    for n in 0..60 {
        publish_surely(&healthy, message(&topic, &format!("key-{}", n % 20), &n.to_string())).await;
    }
    let mut first = join(&silent, &topic, true).await;
    let held = collect(&mut first, 30).await;
    proxy.set(swallow_all());
    let begun = Instant::now();
    let taking_over = async {
        let mut second = join(&healthy, &topic, true).await;
        let mut last: BTreeMap<String, usize> = BTreeMap::new();
        for delivery in collect(&mut second, 60).await {
            let n: usize = text(&delivery).parse().expect("a number");
            let before = last.insert(delivery.message.key.clone(), n);
            assert!(before.is_none_or(|before| before < n), "{n} came after {before:?}");
            let _ = delivery.settle(Settlement::Ack).outcome().await;
        }
        begun.elapsed()
    };
    let noticing = async {
        lost(&mut first).await;
        begun.elapsed()
    };
    let (taken, noticed) = tokio::join!(taking_over, noticing);
    assert!(noticed < taken, "noticed after {noticed:?}, taken over after {taken:?}");
    assert!(taken < Duration::from_secs(12), "{taken:?}");
    for delivery in held {
        assert_eq!(delivery.settle(Settlement::Ack).outcome().await, Settled::Stale);
    }
    assert!(proxy.counts().swallowed > 0, "the fault bit");
    clean_up(&healthy);
}

/// The connection is open and silent: the member finds out, and the broker connects anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_is_noticed() {
    let (broker, proxy) = behind_proxy().await;
    let topic = topic(&broker, false).await;
    let mut member = join(&broker, &topic, false).await;
    assert!(timeout(Duration::from_millis(100), member.fetch(4)).await.is_err());
    proxy.set(Faults { to_client: Way { hold: true, ..Way::default() }, ..Faults::default() });
    lost(&mut member).await;
    proxy.heal();
    timeout(PATIENCE, publish_surely(&broker, message(&topic, "k", "after")))
        .await
        .expect("it recovers");
    let mut member = join(&broker, &topic, false).await;
    assert_eq!(text(&collect(&mut member, 1).await[0]), "after");
    clean_up(&broker);
}

/// Reads everything, joining anew whenever the source is lost, until `count` different messages were
/// acknowledged; checks the order of each key as far as it was acknowledged.
async fn read_all(broker: NatsBroker, topic: String, count: usize) -> usize {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let (mut handled, mut again) = (0, 0);
    while handled < count {
        let mut source = join(&broker, &topic, true).await;
        while handled < count {
            let deliveries = match source.fetch(256).await {
                Fetched::Deliveries(deliveries) => deliveries,
                Fetched::Revoked { done, .. } => {
                    drop(done);
                    continue;
                }
                Fetched::Lost(_) => break,
            };
            for delivery in deliveries {
                let n: usize = text(&delivery).parse().expect("a number");
                let next = seen.entry(delivery.message.key.clone()).or_default();
                if n == *next {
                    *next += 1;
                    handled += 1;
                } else {
                    assert!(n < *next, "{}: {n} came before {next}", delivery.message.key);
                    again += 1;
                }
                let _ = delivery.settle(Settlement::Ack).outcome().await;
            }
        }
    }
    again
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_three_times_loses_nothing_and_keeps_the_order() {
    const TASKS: usize = 20;
    const EACH: usize = 500;
    let server = Private::start(Service::Nats).await.expect("a server");
    let settings = Settings {
        publish_timeout: HumanDuration::from_secs(2),
        lease: HumanDuration::from_secs(2),
        ..Settings::new(server.url())
    };
    let broker = open(settings).await;
    let topic = topic(&broker, true).await;
    let reader = tokio::spawn(read_all(broker.clone(), topic.clone(), TASKS * EACH));
    let published = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (broker, topic, published) = (broker.clone(), topic.clone(), Arc::clone(&published));
        tasks.spawn(async move {
            let mut failures = 0;
            for n in 0..EACH {
                let message = message(&topic, &format!("key-{task}"), &n.to_string());
                failures += usize::from(publish_surely(&broker, message).await);
                published.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            failures
        });
    }
    for restart in 1..=3 {
        while published.load(std::sync::atomic::Ordering::Relaxed) < restart * TASKS * EACH / 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if restart == 2 {
            server.kill().await.expect("it dies");
        } else {
            server.stop().await.expect("it stops");
        }
        server.start_again().await.expect("it starts again");
    }
    let unknown: usize =
        timeout(4 * PATIENCE, tasks.join_all()).await.expect("all are published").into_iter().sum();
    assert!(unknown > 0, "no restart bit");
    let again = timeout(4 * PATIENCE, reader).await.expect("all arrive").expect("in order");
    println!("{unknown} of unknown outcome were sent again, {again} came again");
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_without_a_server_ends_and_says_that_nothing_was_sent() {
    let server = Private::start(Service::Nats).await.expect("a server");
    let settings = Settings {
        connect_timeout: HumanDuration::from_millis(300),
        ..Settings::new(server.url())
    };
    let broker = open(settings).await;
    let topic = topic(&broker, false).await;
    server.stop().await.expect("it stops");
    // The first may still be on its way when the end of the connection is noticed.
    let _ = broker.publish(vec![message(&topic, "k", "lost?")]).await;
    let begun = Instant::now();
    let answers = broker.publish(vec![message(&topic, "k", "no")]).await;
    let error = answers.into_iter().next().expect("an answer").expect_err("there is no server");
    assert_eq!((error.kind, error.sent), (PublishErrorKind::Disconnected, Sent::No));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_may_take_longer_than_the_server_waits() {
    let settings = Settings { ack_wait: HumanDuration::from_secs(1), ..settings() };
    let broker = open(settings).await;
    let topic = topic(&broker, false).await;
    for n in 0..5 {
        publish_surely(&broker, message(&topic, "k", &n.to_string())).await;
    }
    let mut member = join(&broker, &topic, false).await;
    let held = collect(&mut member, 5).await;
    let mut other = join(&broker, &topic, false).await;
    // Three times as long as the server waits without a sign of progress.
    assert!(timeout(Duration::from_secs(3), other.fetch(5)).await.is_err(), "it came again");
    for delivery in held {
        assert_ne!(delivery.settle(Settlement::Ack).outcome().await, Settled::Stale);
    }
    assert!(timeout(Duration::from_secs(2), other.fetch(5)).await.is_err(), "it came again");
    let _: Box<dyn Source> = other;
    clean_up(&broker);
}
