//! The broker suite against Mosquitto.

mod support;

use antiphon_broker_memory::MemoryBroker;
use antiphon_broker_mqtt::MqttBroker;
use antiphon_messaging::AnyBroker;
use antiphon_testing::conformance::broker::BrokerHarness;
use support::Scratch;

/// A prefix of its own for each case. Neither delayed messages nor dead letters are MQTT's.
struct Mqtt {
    _scratch: Scratch,
    broker: MqttBroker,
    parking: MemoryBroker,
}

impl BrokerHarness for Mqtt {
    async fn start() -> Self {
        let scratch = Scratch::new().await;
        let broker = scratch.open().await;
        Self { _scratch: scratch, broker, parking: MemoryBroker::default() }
    }

    fn broker(&self) -> AnyBroker {
        AnyBroker::new(self.broker.clone())
    }

    fn parking(&self) -> Option<AnyBroker> {
        Some(AnyBroker::new(self.parking.clone()))
    }
}

antiphon_testing::broker_conformance!(Mqtt);
