//! The broker suite against a real Kafka.

use antiphon_broker_memory::MemoryBroker;
use antiphon_messaging::AnyBroker;
use antiphon_testing::conformance::broker::BrokerHarness;

use crate::common::{self, Tidy};

struct Kafka {
    broker: Tidy,
    parking: MemoryBroker,
}

impl BrokerHarness for Kafka {
    async fn start() -> Self {
        let broker = Tidy::new(common::open(common::settings()).await);
        Self { broker, parking: MemoryBroker::default() }
    }

    fn broker(&self) -> AnyBroker {
        AnyBroker::new(self.broker.clone())
    }

    fn members_own_lanes(&self) -> bool {
        true
    }

    fn lanes_leave_together(&self) -> bool {
        true
    }

    fn parking(&self) -> Option<AnyBroker> {
        Some(AnyBroker::new(self.parking.clone()))
    }
}

antiphon_testing::broker_conformance!(Kafka);
