//! A server that is restarted, and one that forgets.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use antiphon_broker_mqtt::MqttBroker;
use antiphon_messaging::{Broker, Fetched, Sent, Settlement, Subscription};
use antiphon_testing::services::{Private, Service};
use tokio::time::timeout;

use crate::custom::Mosquitto;
use crate::scratch::Scratch;
use crate::support::{PATIENCE, at, declare, foreign, handle, join, message, open, publish};

/// Publishes until the server has it; tells how often it had to be sent again.
async fn insist(broker: &MqttBroker, key: &str, text: &str) -> usize {
    let message = message("t", key, text);
    for again in 0.. {
        match publish(broker, message.clone()).await {
            Ok(_receipt) => return again,
            Err(error) => assert!(!error.is_permanent(), "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    unreachable!()
}

/// Subscribes, and again whenever it is lost, until all texts were seen; each key's in order.
async fn consume(broker: &MqttBroker, count: usize) -> usize {
    let mut seen = HashSet::new();
    let mut last: BTreeMap<String, usize> = BTreeMap::new();
    let mut lost = 0;
    while seen.len() < count {
        let topics = vec!["t".to_owned()];
        let subscription = Subscription { group: "g".into(), topics, ordered: true };
        let Ok(mut source) = broker.subscribe(subscription).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        while seen.len() < count {
            match source.fetch(256).await {
                Fetched::Deliveries(deliveries) => {
                    for delivery in deliveries {
                        let n: usize = String::from_utf8_lossy(&delivery.message.body)
                            .parse()
                            .expect("a number");
                        let key = delivery.message.key.clone();
                        // What comes again was seen before: the inbox knows it.
                        if seen.insert((key.clone(), n)) {
                            let before = last.insert(key.clone(), n);
                            let expected = before.map_or(0, |before| before + 1);
                            assert_eq!(n, expected, "of {key}, after {before:?}");
                        }
                        let _ = delivery.settle(Settlement::Ack);
                    }
                }
                Fetched::Revoked { .. } => {}
                Fetched::Lost(_) => {
                    lost += 1;
                    break;
                }
            }
        }
    }
    lost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_restarts_during_ten_thousand_messages_lose_nothing_and_keep_the_order() {
    const TASKS: usize = 20;
    const EACH: usize = 500;
    let server = Private::start(Service::Mosquitto).await.expect("a server");
    let scratch = Scratch::new();
    let broker = open(at(&scratch.settings, &server.url())).await;
    declare(&broker, "t", "g").await;
    let (progress, mut done) = tokio::sync::watch::channel(0_usize);
    let mut publishers = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (broker, progress) = (broker.clone(), progress.clone());
        publishers.spawn(async move {
            let mut again = 0;
            for n in 0..EACH {
                again += insist(&broker, &format!("key-{task}"), &n.to_string()).await;
                progress.send_modify(|done| *done += 1);
            }
            again
        });
    }
    let consumer = tokio::spawn({
        let broker = broker.clone();
        async move { consume(&broker, TASKS * EACH).await }
    });
    for restart in 1..=3 {
        let begun = done.wait_for(|done| *done >= restart * TASKS * EACH / 4).await;
        drop(begun.expect("publishers go on"));
        server.restart().await.expect("it restarts");
    }
    let again = timeout(PATIENCE * 3, publishers.join_all()).await.expect("all are taken");
    let lost = timeout(PATIENCE * 3, consumer).await.expect("all arrive").expect("in order");
    assert!(lost >= 3, "the consumer lost its connection {lost} times");
    assert!(again.iter().sum::<usize>() > 0, "something had to be sent again");
}

/// A server without a disk forgets topics, groups and what they had. What was confirmed and not read
/// is lost; what is published from then on is not, although nobody declares anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_forgotten_everything_is_told_again_before_the_first_message() {
    let mut server = Mosquitto::start("persistence false");
    let scratch = Scratch::new();
    let broker = open(at(&scratch.settings, &server.url())).await;
    declare(&broker, "t", "g").await;
    declare(&broker, "other", "silent").await;
    insist(&broker, "k", "0").await;
    server.kill();
    server.start_again();
    for n in 0..10 {
        insist(&broker, "k", &n.to_string()).await;
    }
    timeout(PATIENCE, consume(&broker, 10)).await.expect("all arrive");
    // Nobody was there to read this one, and nobody has declared it again.
    let _receipt = publish(&broker, message("other", "k", "x")).await.expect("it is taken");
}

/// The sessions of a group are gone and its record is not: an operator has removed them by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_are_gone_are_noticed_by_the_first_message_and_made_again() {
    let scratch = Scratch::new();
    let broker = scratch.open().await;
    declare(&broker, "t", "g").await;
    for lane in 0..16 {
        let session = format!("{}.g.L{lane}", scratch.settings.prefix);
        let mut options = foreign(&scratch.settings.url, &session);
        options.set_clean_start(true);
        let (client, mut events) = rumqttc::v5::AsyncClient::new(options, 10);
        events.poll().await.expect("it connects");
        client.disconnect().await.expect("it leaves");
        while events.poll().await.is_ok() {}
    }
    let error = publish(&broker, message("t", "k", "0")).await.expect_err("nobody keeps it");
    assert_eq!(error.sent, Sent::No);
    assert!(error.source.is_some_and(|why| why.to_string().contains("lost the sessions")));
    let again = timeout(PATIENCE, insist(&broker, "k", "0"));
    again.await.expect("the sessions are made again");
    timeout(PATIENCE, consume(&broker, 1)).await.expect("it arrives");
}

/// A killed server tells nobody that its clients are gone. When it comes back, it shows notes of
/// members that are not there, and nobody leaves lanes to them until the notes are out of date.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_does_not_wait_for_what_it_was_itself_before_the_server_was_killed() {
    let settings = "persistence true\nautosave_on_changes true\nautosave_interval 1";
    let mut server = Mosquitto::start(settings);
    let mut scratch = Scratch::new();
    scratch.settings.keep_alive = antiphon_config::HumanDuration::from_secs(60);
    let broker = open(at(&scratch.settings, &server.url())).await;
    declare(&broker, "t", "g").await;
    insist(&broker, "key-0", "0").await;
    let mut source = join(&broker, "t", "g").await;
    assert_eq!(handle(&mut source, 1).await, ["0"], "it is there");
    server.kill();
    server.start_again();
    let told = timeout(PATIENCE, source.fetch(1)).await.expect("it is told");
    assert!(matches!(told, Fetched::Lost(_)), "{told:?}");
    drop(source);
    // In every lane there is something, so that a single one that nobody reads is noticed.
    for key in 0..64 {
        for n in 0..3 {
            insist(&broker, &format!("key-{key}"), &n.to_string()).await;
        }
    }
    timeout(PATIENCE, consume(&broker, 64 * 3)).await.expect("nobody is waited for");
}
