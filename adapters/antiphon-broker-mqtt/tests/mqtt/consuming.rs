//! What others put into our topics.

use std::time::Duration;

use antiphon_broker_memory::MemoryBroker;
use antiphon_broker_mqtt::MqttBroker;
use antiphon_core::{BoxFuture, Component, Health, ShutdownHandle};
use antiphon_messaging::{
    AnyBroker, Consumer, DeadFilter, Fail, Handler, Incoming, Messaging, lane_of,
};
use antiphon_telemetry::Telemetry;
use rumqttc::v5::AsyncClient;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::scratch::Scratch;
use crate::support::{self, PATIENCE, declare, message, publish};

struct Handled(mpsc::UnboundedSender<String>);

impl Handler for Handled {
    fn handles(&self, kind: &str) -> bool {
        kind == "test.Sent"
    }

    fn handle<'a>(&'a self, incoming: &'a Incoming) -> BoxFuture<'a, Result<(), Fail>> {
        let text = String::from_utf8_lossy(&incoming.message.body).into_owned();
        let _ = self.0.send(text);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// What a device does that knows nothing of us.
async fn foreign(broker_url: &str, topic: &str, properties: &[(&str, &str)], text: &str) {
    let options = support::foreign(broker_url, &format!("foreign-{:016x}", fastrand::u64(..)));
    let (client, mut events) = AsyncClient::new(options, 10);
    let properties = PublishProperties {
        user_properties: properties.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
        ..PublishProperties::default()
    };
    let body = text.to_owned();
    let sent = client.publish_with_properties(topic, QoS::AtLeastOnce, false, body, properties);
    sent.await.expect("it is sent");
    let confirmed = async {
        while let Ok(event) = events.poll().await {
            if format!("{event:?}").contains("PubAck") {
                return;
            }
        }
        unreachable!("the foreign client lost its connection");
    };
    timeout(PATIENCE, confirmed).await.expect("it is confirmed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_message_is_a_dead_letter_and_blocks_nothing() {
    let scratch = Scratch::new();
    let broker: MqttBroker = scratch.open().await;
    declare(&broker, "t", "g").await;
    let parking = MemoryBroker::default();
    let health = Health::new();
    let mut messaging = Messaging::new(AnyBroker::new(broker.clone()), Telemetry::new(), health);
    messaging.parking = Some(AnyBroker::new(parking.clone()));
    let lane = format!("{}/t/t/{}", scratch.settings.prefix, lane_of("k"));
    let url = &scratch.settings.url;
    foreign(url, &lane, &[], "21.5 °C").await;
    foreign(url, &lane, &[("specversion", "1.0"), ("id", "not-a-uuid"), ("note", "kept")], "x")
        .await;
    let _receipt = publish(&broker, message("t", "k", "ours")).await.expect("it is taken");
    let (sender, mut handled) = mpsc::unbounded_channel();
    let consumer = Consumer::group("g").topic("t").handler(Handled(sender)).ordered();
    let worker = consumer.build(&messaging).expect("it fits");
    let (shutdown, drains) = ShutdownHandle::new();
    let running = tokio::spawn(worker.run(drains));
    let text = timeout(PATIENCE, handled.recv()).await.expect("it is not blocked");
    assert_eq!(text.as_deref(), Some("ours"));
    let letters = AnyBroker::new(parking).dead_letters().expect("it keeps dead letters");
    let dead = async {
        loop {
            let dead = letters.list(&DeadFilter::group("g"), None, 10).await.expect("a list");
            if dead.len() == 2 {
                return dead;
            }
            tokio::task::yield_now().await;
        }
    };
    let dead = timeout(PATIENCE, dead).await.expect("both are kept");
    assert!(dead.iter().all(|letter| letter.deaths[0].code == "decode"), "{dead:?}");
    let bodies: Vec<_> = dead.iter().map(|letter| letter.message.body.clone()).collect();
    assert!(bodies.contains(&"21.5 °C".into()) && bodies.contains(&"x".into()), "{dead:?}");
    assert!(dead.iter().any(|letter| letter.message.attribute("note") == Some("kept")));
    shutdown.drain(Duration::from_secs(5));
    running.await.expect("it does not panic").expect("it ends well");
}
