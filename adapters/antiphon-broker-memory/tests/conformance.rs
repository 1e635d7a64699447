//! The broker suite, with paused time and with real time on two threads.

use antiphon_broker_memory::MemoryBroker;
use antiphon_messaging::AnyBroker;
use antiphon_testing::conformance::broker::BrokerHarness;

struct Memory(MemoryBroker);

impl BrokerHarness for Memory {
    async fn start() -> Self {
        Self(MemoryBroker::default())
    }

    fn broker(&self) -> AnyBroker {
        AnyBroker::new(self.0.clone())
    }
}

mod paused {
    use super::Memory;
    antiphon_testing::broker_conformance!(paused Memory);
}

mod threads {
    use super::Memory;
    antiphon_testing::broker_conformance!(Memory);
}
