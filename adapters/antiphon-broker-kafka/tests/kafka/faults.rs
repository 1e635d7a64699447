//! A broker that dies and comes back.

use std::collections::BTreeMap;

use antiphon_messaging::{Broker, Fetched, Message, Settlement};
use tokio::time::{Duration, timeout};

use crate::common::{message, open, private, settings, subscription, text, topology, unique};

const TASKS: usize = 20;
const EACH: usize = 500;

/// Publishes until the message is taken.
async fn insist(broker: &impl Broker, message: &Message) -> u32 {
    let mut unknown = 0;
    loop {
        match broker.publish(vec![message.clone()]).await.remove(0) {
            Ok(_receipt) => return unknown,
            Err(error) => {
                assert!(!error.is_permanent(), "{error}");
                unknown += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Killed and started again three times during 10 000 publishes from 20 tasks: all arrive, and in
/// the order of their keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_killed_three_times_while_messages_are_published() {
    let server = private().await;
    let broker = open(antiphon_broker_kafka::Settings { url: server.url(), ..settings() }).await;
    let name = unique("killed");
    broker.declare(&topology(&name, true)).await.expect("declared");
    let (sent, mut sending) = tokio::sync::mpsc::unbounded_channel::<()>();
    let publish = futures_util::future::join_all((0..TASKS).map(|task| {
        let (broker, name, sent) = (broker.clone(), name.clone(), sent.clone());
        async move {
            let mut unknown = 0;
            for n in 0..EACH {
                unknown +=
                    insist(&broker, &message(&name, &format!("{task}"), &n.to_string())).await;
                let _ = sent.send(());
            }
            unknown
        }
    }));
    let restart = async {
        let mut count = 0;
        for quarter in 1..=3 {
            while count < quarter * TASKS * EACH / 4 {
                sending.recv().await.expect("the tasks go on");
                count += 1;
            }
            server.kill().await.expect("killed");
            server.start_again().await.expect("started again");
        }
    };
    let (unknown, ()) = tokio::join!(publish, restart);
    let unknown: u32 = unknown.into_iter().sum();
    let consume = async {
        let mut keys: BTreeMap<String, usize> = BTreeMap::new();
        let (mut distinct, mut copies) = (0, 0);
        let mut source = broker.subscribe(subscription(&name, true)).await.expect("joined");
        while distinct < TASKS * EACH {
            let deliveries = match source.fetch(256).await {
                Fetched::Deliveries(deliveries) => deliveries,
                Fetched::Revoked { .. } => continue,
                Fetched::Lost(why) => unreachable!("{why}"),
            };
            for delivery in deliveries {
                let n: usize = text(&delivery).parse().expect("a number");
                let next = keys.entry(delivery.message.key.clone()).or_default();
                assert!(n <= *next, "{}: {n} came before {next}", delivery.message.key);
                if n == *next {
                    *next += 1;
                    distinct += 1;
                } else {
                    copies += 1;
                }
                drop(delivery.settle(Settlement::Ack));
            }
        }
        copies
    };
    let copies = timeout(Duration::from_secs(60), consume).await.expect("all arrive");
    assert!(copies <= u64::from(unknown), "copies come of unknown outcomes only");
}
