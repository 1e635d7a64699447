//! The broker suite against Mosquitto.

#[path = "support/scratch.rs"]
mod scratch;

use antiphon_broker_memory::MemoryBroker;
use antiphon_broker_mqtt::MqttBroker;
use antiphon_messaging::AnyBroker;
use antiphon_testing::conformance::broker::BrokerHarness;
use scratch::Scratch;

/// A prefix of its own for each case. Neither delayed messages nor dead letters are MQTT's.
struct Mqtt {
    broker: MqttBroker,
    parking: MemoryBroker,
    _scratch: Scratch,
}

impl BrokerHarness for Mqtt {
    async fn start() -> Self {
        let scratch = Scratch::new();
        let broker = scratch.open().await;
        Self { broker, parking: MemoryBroker::default(), _scratch: scratch }
    }

    fn broker(&self) -> AnyBroker {
        AnyBroker::new(self.broker.clone())
    }

    fn parking(&self) -> Option<AnyBroker> {
        Some(AnyBroker::new(self.parking.clone()))
    }

    fn members_own_lanes(&self) -> bool {
        true
    }
}

antiphon_testing::broker_conformance!(Mqtt);
