//! Publishing: confirmations, and the lack of them.

use std::collections::BTreeSet;
use std::time::Duration;

use antiphon_broker_mqtt::Unread;
use antiphon_config::HumanDuration;
use antiphon_messaging::{Broker, Group, PublishErrorKind, Sent, Start, Topology};
use antiphon_testing::proxy::{Faults, Proxy, Way};

use crate::scratch::Scratch;
use crate::support::{
    PATIENCE, acked, at, declare, fetch, handle, join, message, open, publish, text,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packet_ids_begin_again_after_65535_messages() {
    let mut scratch = Scratch::new();
    scratch.settings.unread = Unread::Drop;
    let broker = scratch.open().await;
    let topology = Topology { topics: vec!["t".into()], groups: Vec::new() };
    broker.declare(&topology).await.expect("it is declared");
    let publishers = (0..7).map(async |_| {
        for _ in 0..10 {
            let batch = (0..1_000).map(|n: u32| message("t", &n.to_string(), "x")).collect();
            let answers = broker.publish(batch).await;
            assert_eq!(answers.len(), 1_000);
            for answer in answers {
                let _receipt = answer.expect("it is taken");
            }
        }
    });
    futures_util::future::join_all(publishers).await;
}

#[tokio::test]
async fn a_lost_confirmation_leaves_open_whether_the_message_arrived() {
    let mut scratch = Scratch::new();
    let direct = scratch.open().await;
    declare(&direct, "t", "g").await;
    let mut source = join(&direct, "t", "g").await;
    scratch.settings.publish_timeout = HumanDuration(Duration::from_millis(500));
    scratch.settings.keep_alive = HumanDuration::from_secs(1);
    let proxy = Proxy::in_front_of(&scratch.settings.url).await.expect("a proxy");
    let broker = open(at(&scratch.settings, proxy.url())).await;
    let to_client = Way { swallow: true, ..Way::default() };
    proxy.set(Faults { to_client, ..Faults::default() });
    let sent = message("t", "k", "once?");
    let error = publish(&broker, sent.clone()).await.expect_err("nobody confirms it");
    assert_eq!((error.kind, error.sent), (PublishErrorKind::Disconnected, Sent::Maybe));
    assert!(proxy.counts().swallowed > 0, "the fault bit");
    assert_eq!(handle(&mut source, 1).await, ["once?"], "it had arrived");
    proxy.heal();
    // The same message with the same id: whoever remembers ids knows it again.
    let again = async {
        while publish(&broker, sent.clone()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("it goes on when the network does");
    let delivery = fetch(&mut source, 1).await.remove(0);
    assert_eq!(delivery.message.id, sent.id);
    acked(delivery).await;
}

#[tokio::test]
async fn without_a_connection_nothing_is_sent() {
    let mut scratch = Scratch::new();
    scratch.settings.publish_timeout = HumanDuration(Duration::from_millis(300));
    let direct = scratch.open().await;
    declare(&direct, "t", "g").await;
    let proxy = Proxy::in_front_of(&scratch.settings.url).await.expect("a proxy");
    let broker = open(at(&scratch.settings, proxy.url())).await;
    proxy.set(Faults { refuse: true, ..Faults::default() });
    proxy.reset();
    let lost = async {
        loop {
            match publish(&broker, message("t", "k", "x")).await {
                Err(error) if error.sent == Sent::No => return error,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, lost).await.expect("it is noticed");
    assert_eq!(error.kind, PublishErrorKind::Disconnected);
    assert!(error.source.is_some_and(|why| why.to_string().contains("127.0.0.1")));
    proxy.heal();
}

#[tokio::test]
async fn what_mqtt_has_no_room_for_is_refused_and_the_connection_lives() {
    let scratch = Scratch::new();
    let proxy = Proxy::in_front_of(&scratch.settings.url).await.expect("a proxy");
    let broker = open(at(&scratch.settings, proxy.url())).await;
    declare(&broker, "t", "g").await;
    let connections = proxy.counts().connections;
    let mut long = message("t", "k", "x");
    long.attributes.insert("long".into(), "x".repeat(70_000));
    let mut huge = message("t", "k", "");
    huge.body = vec![0; 2 * 1024 * 1024].into();
    let mut odd = message("t", "k", "x");
    odd.attributes.insert("a\u{1}b".into(), "x".into());
    let batch = vec![long, message("t", "k", "one"), huge, odd, message("t", "k", "two")];
    let answers = broker.publish(batch).await;
    let kinds: Vec<_> =
        answers.iter().map(|answer| answer.as_ref().err().map(|e| (e.kind, e.sent))).collect();
    let no = |kind| Some((kind, Sent::No));
    let (large, rejected) = (no(PublishErrorKind::TooLarge), no(PublishErrorKind::Rejected));
    assert_eq!(kinds, [large, None, large, rejected, None]);
    assert_eq!(proxy.counts().connections, connections, "nothing was connected anew");
    let mut source = join(&broker, "t", "g").await;
    assert_eq!(handle(&mut source, 2).await, ["one", "two"]);
}

#[tokio::test]
async fn a_topic_that_no_group_reads_is_unroutable_unless_it_may_be() {
    let mut scratch = Scratch::new();
    let broker = scratch.open().await;
    let topology = Topology { topics: vec!["t".into()], groups: Vec::new() };
    broker.declare(&topology).await.expect("it is declared");
    let error = publish(&broker, message("t", "k", "x")).await.expect_err("nobody reads it");
    assert_eq!((error.kind, error.sent), (PublishErrorKind::Unroutable, Sent::No));
    assert!(error.source.is_some_and(|why| why.to_string().contains("no group reads it")));
    scratch.settings.unread = Unread::Drop;
    let generous = scratch.open().await;
    let _receipt = publish(&generous, message("t", "k", "x")).await.expect("it may be lost");
}

#[tokio::test]
async fn a_topic_that_another_process_declares_is_known_at_once() {
    let scratch = Scratch::new();
    let (one, other) = (scratch.open().await, scratch.open().await);
    for n in 0..20 {
        let topic = format!("t{n}");
        let group = Group {
            name: format!("g{n}"),
            topics: vec![topic.clone()],
            start: Start::Latest,
            ordered: true,
        };
        let topology = Topology { topics: vec![topic.clone()], groups: vec![group] };
        one.declare(&topology).await.expect("it is declared");
        let _receipt = publish(&other, message(&topic, "k", "x")).await.expect("it is known");
    }
}

/// A consumer that publishes more than it consumes: with one connection and a bounded queue between
/// its two sides, both would wait for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_publishes_heavily_does_not_freeze() {
    const COUNT: usize = 300;
    const EACH: usize = 20;
    let mut scratch = Scratch::new();
    scratch.settings.lane_window = 4;
    scratch.settings.publish_window = 10;
    let broker = scratch.open().await;
    declare(&broker, "in", "in").await;
    declare(&broker, "out", "out").await;
    let feed = async {
        for n in 0..COUNT {
            let _receipt = publish(&broker, message("in", &n.to_string(), &n.to_string()))
                .await
                .expect("taken");
        }
    };
    let multiply = async {
        let mut source = join(&broker, "in", "in").await;
        let mut done = 0;
        while done < COUNT {
            for delivery in fetch(&mut source, 64).await {
                let text = text(&delivery);
                let batch = (0..EACH).map(|n| message("out", &text, &format!("{text}/{n}")));
                for answer in broker.publish(batch.collect()).await {
                    let _receipt = answer.expect("it is taken");
                }
                acked(delivery).await;
                done += 1;
            }
        }
    };
    let collect = async {
        let mut source = join(&broker, "out", "out").await;
        let mut seen = BTreeSet::new();
        while seen.len() < COUNT * EACH {
            for delivery in fetch(&mut source, 64).await {
                seen.insert(text(&delivery));
                acked(delivery).await;
            }
        }
    };
    let all = async { tokio::join!(feed, multiply, collect) };
    tokio::time::timeout(PATIENCE * 2, all).await.expect("nothing freezes");
}
