//! Consuming: what others put into queues, and what others do to them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use antiphon_messaging::{Broker, Fetched, Settled, Settlement, envelope};
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, QueueDeleteOptions};
use tokio::time::{Instant, timeout};

use crate::support::{
    PATIENCE, QUIET, ack, bare, fetch, handle, join, lost, message, open, place, publish, text,
    topology,
};

#[tokio::test]
async fn a_foreign_message_says_what_is_wrong_with_it_and_blocks_nothing() {
    let (vhost, settings) = place().await;
    let broker = open(settings).await;
    let (topic, group) = ("foreign".to_owned(), "foreign.group".to_owned());
    broker.declare(&topology(&topic, &[&group], false)).await.unwrap();
    let (_connection, channel) = bare(&vhost.url()).await;
    let plain = BasicProperties::default();
    let options = BasicPublishOptions::default();
    let (exchange, route) = (topic.as_str().into(), "whatever".into());
    channel.basic_publish(exchange, route, options, b"{}", plain).await.unwrap();
    let _receipt = publish(&broker, message(&topic, "k", "ours")).await.unwrap();
    let mut source = join(&broker, &topic, &group, false).await;
    let mut seen = BTreeMap::new();
    while seen.len() < 2 {
        for delivery in fetch(&mut source, 2).await {
            seen.insert(text(&delivery), envelope::defect(&delivery.message).map(str::to_owned));
            ack(delivery).await;
        }
    }
    assert_eq!(seen["ours"], None);
    assert!(seen["{}"].as_ref().is_some_and(|defect| defect.contains("specversion")), "{seen:?}");
}

#[tokio::test]
async fn a_deleted_queue_ends_the_member_and_is_made_again() {
    for ordered in [false, true] {
        let (vhost, settings) = place().await;
        let broker = open(settings).await;
        let (topic, group) = ("gone".to_owned(), "gone.group".to_owned());
        let wanted = topology(&topic, &[&group], ordered);
        broker.declare(&wanted).await.unwrap();
        let mut source = join(&broker, &topic, &group, ordered).await;
        let _receipt = publish(&broker, message(&topic, "k", "held")).await.unwrap();
        let held = fetch(&mut source, 1).await.remove(0);
        let (_connection, channel) = bare(&vhost.url()).await;
        let queues: Vec<String> = match ordered {
            false => vec![group.clone()],
            true => (0..4).map(|lane| format!("{group}.L{lane}")).collect(),
        };
        for queue in &queues {
            let options = QueueDeleteOptions::default();
            channel.queue_delete(queue.as_str().into(), options).await.unwrap();
        }
        let reason = lost(&mut source).await;
        assert!(reason.contains(&group), "{reason}");
        assert_eq!(held.settle(Settlement::Ack).outcome().await, Settled::Stale);
        broker.declare(&wanted).await.unwrap();
        let mut source = join(&broker, &topic, &group, ordered).await;
        let _receipt = publish(&broker, message(&topic, "k", "again")).await.unwrap();
        assert_eq!(handle(&mut source, 1).await, ["again"]);
    }
}

#[tokio::test]
async fn what_a_member_does_not_fetch_others_get() {
    let (_vhost, settings) = place().await;
    let broker = open(settings).await;
    let (topic, group) = ("idle".to_owned(), "idle.group".to_owned());
    broker.declare(&topology(&topic, &[&group], false)).await.unwrap();
    let mut idle = join(&broker, &topic, &group, false).await;
    for n in 0..30 {
        let _receipt = publish(&broker, message(&topic, "", &n.to_string())).await.unwrap();
    }
    let mut texts = handle(&mut idle, 10).await;
    // Ten more lie in its buffer by now. It holds nothing, and asks for nothing.
    let mut busy = join(&broker, &topic, &group, false).await;
    texts.extend(handle(&mut busy, 20).await);
    assert_eq!(texts.into_iter().collect::<BTreeSet<_>>().len(), 30);
    drop(idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_move_when_members_come_and_go_and_order_holds() {
    const KEYS: usize = 24;
    let (_vhost, settings) = place().await;
    let broker = open(settings).await;
    let (topic, group) = ("lanes".to_owned(), "lanes.group".to_owned());
    broker.declare(&topology(&topic, &[&group], true)).await.unwrap();
    let (results, mut seen) = tokio::sync::mpsc::unbounded_channel::<(usize, usize)>();
    let publisher = {
        let (broker, topic) = (broker.clone(), topic.clone());
        tokio::spawn(async move {
            for n in 0..2_400 {
                let message = message(&topic, &format!("key-{}", n % KEYS), &n.to_string());
                let _receipt = publish(&broker, message).await.unwrap();
            }
        })
    };
    let mut members = Vec::new();
    for round in 0..4 {
        let (mut source, results) = (join(&broker, &topic, &group, true).await, results.clone());
        members.push(tokio::spawn(async move {
            let until = Instant::now() + Duration::from_millis(400 * (4 - round));
            loop {
                // The last one stays until everything is done.
                let next = async {
                    if round == 0 {
                        Some(source.fetch(16).await)
                    } else {
                        tokio::time::timeout_at(until, source.fetch(16)).await.ok()
                    }
                };
                match next.await {
                    Some(Fetched::Deliveries(deliveries)) => {
                        for delivery in deliveries {
                            let n: usize = text(&delivery).parse().unwrap();
                            ack(delivery).await;
                            if results.send((round as usize, n)).is_err() {
                                return;
                            }
                        }
                    }
                    Some(Fetched::Revoked { done, .. }) => drop(done),
                    Some(Fetched::Lost(reason)) => panic!("lost: {reason}"),
                    None => return source.close().await,
                }
            }
        }));
    }
    let mut last: BTreeMap<usize, usize> = BTreeMap::new();
    let mut workers = BTreeSet::new();
    for _ in 0..2_400 {
        let (worker, n) = timeout(PATIENCE, seen.recv()).await.expect("all come").unwrap();
        workers.insert(worker);
        if let Some(before) = last.insert(n % KEYS, n) {
            assert_eq!(n, before + KEYS, "key {} in order", n % KEYS);
        }
    }
    publisher.await.unwrap();
    assert!(workers.len() > 1, "lanes moved: {workers:?}");
    assert!(timeout(QUIET, seen.recv()).await.is_err(), "nothing came twice");
    drop(seen);
    members.remove(0).abort();
    for member in members {
        member.await.unwrap();
    }
}
