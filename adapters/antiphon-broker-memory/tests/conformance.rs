//! The broker suite: with paused time, with real time on two threads, and for a broker that can do
//! little, with another one that does for it what it cannot.

use std::time::Duration;

use antiphon_broker_memory::{MemoryBroker, Settings};
use antiphon_core::Clock;
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

/// Neither delays nor dead letters, and deliveries do not hold back their keys.
struct Limited {
    limited: MemoryBroker,
    parking: MemoryBroker,
}

impl BrokerHarness for Limited {
    async fn start() -> Self {
        let mut settings = Settings::default();
        settings.capabilities.holds_keys = false;
        settings.capabilities.dead_letters = false;
        settings.capabilities.retry_delay_max = Duration::ZERO;
        settings.capabilities.publish_delay_max = Duration::ZERO;
        let limited = MemoryBroker::with_settings(settings, Clock::system());
        Self { limited, parking: MemoryBroker::default() }
    }

    fn broker(&self) -> AnyBroker {
        AnyBroker::new(self.limited.clone())
    }

    fn parking(&self) -> Option<AnyBroker> {
        Some(AnyBroker::new(self.parking.clone()))
    }
}

mod limited {
    use super::Limited;
    antiphon_testing::broker_conformance!(paused Limited);
}
