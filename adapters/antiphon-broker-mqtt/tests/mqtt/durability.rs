//! What Mosquitto keeps when it is killed. The README says what these tests have found.

use antiphon_broker_mqtt::MqttBroker;

use crate::custom::Mosquitto;
use crate::scratch::Scratch;
use crate::support::{acked, at, declare, message, open, publish};

const COUNT: usize = 200;

/// How many of so many confirmed messages survive a `kill -9` right after the last confirmation.
async fn survivors(settings: &str) -> usize {
    let mut server = Mosquitto::start(settings);
    let scratch = Scratch::new();
    let settings = at(&scratch.settings, &server.url());
    let broker = open(settings.clone()).await;
    declare(&broker, "t", "g").await;
    for n in 0..COUNT {
        let _receipt = publish(&broker, message("t", "k", &n.to_string())).await.expect("taken");
    }
    server.kill();
    drop(broker);
    server.start_again();
    let broker = open(settings).await;
    count(&broker).await
}

async fn count(broker: &MqttBroker) -> usize {
    use antiphon_messaging::{Broker, Fetched, Subscription};
    let subscription = Subscription { group: "g".into(), topics: vec!["t".into()], ordered: true };
    // Not even the group may be known any more.
    let Ok(mut source) = broker.subscribe(subscription).await else { return 0 };
    let mut count = 0;
    let quiet = std::time::Duration::from_millis(700);
    while let Ok(Fetched::Deliveries(more)) = tokio::time::timeout(quiet, source.fetch(64)).await {
        for delivery in more {
            acked(delivery).await;
            count += 1;
        }
    }
    count
}

#[tokio::test]
async fn without_persistence_nothing_survives() {
    assert_eq!(survivors("persistence false").await, 0);
}

#[tokio::test]
async fn saved_at_intervals_the_last_messages_do_not_survive() {
    assert_eq!(survivors("persistence true\nautosave_interval 1800").await, 0);
}

#[tokio::test]
async fn saved_on_every_change_nearly_everything_survives() {
    let kept = survivors("persistence true\nautosave_on_changes true\nautosave_interval 1").await;
    assert!(kept >= COUNT - 1, "{kept} of {COUNT}");
}
