//! The broker suite against a real server.

use crate::common::{clean_up, open, settings};
use antiphon_broker_memory::MemoryBroker;
use antiphon_broker_nats::NatsBroker;
use antiphon_messaging::AnyBroker;
use antiphon_testing::conformance::broker::BrokerHarness;

struct Nats {
    broker: NatsBroker,
    parking: MemoryBroker,
}

impl BrokerHarness for Nats {
    async fn start() -> Self {
        Self { broker: open(settings()).await, parking: MemoryBroker::default() }
    }

    fn broker(&self) -> AnyBroker {
        AnyBroker::new(self.broker.clone())
    }

    fn parking(&self) -> Option<AnyBroker> {
        Some(AnyBroker::new(self.parking.clone()))
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        clean_up(&self.broker);
    }
}

antiphon_testing::broker_conformance!(Nats);
