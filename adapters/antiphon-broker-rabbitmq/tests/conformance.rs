//! The broker suite against the real server.

use std::time::Duration;

use antiphon_broker_memory::MemoryBroker;
use antiphon_broker_rabbitmq::{RabbitmqBroker, Settings};
use antiphon_messaging::AnyBroker;
use antiphon_testing::conformance::broker::BrokerHarness;
use antiphon_testing::services::Service;

struct Rabbitmq {
    broker: RabbitmqBroker,
    /// Delays messages and keeps dead letters, which RabbitMQ does not.
    parking: MemoryBroker,
}

impl BrokerHarness for Rabbitmq {
    async fn start() -> Self {
        let mut settings = Settings::at(Service::Rabbitmq.url());
        // Each case has names of its own, which the server forgets by itself.
        // Not all at once: forgetting a queue takes it a while.
        settings.group_expiry = Some(Duration::from_secs(fastrand::u64(30..180)).into());
        let broker = RabbitmqBroker::open(settings).await.unwrap_or_else(|error| {
            panic!("{error}; start it with `cargo xtask services up rabbitmq`")
        });
        Self { broker, parking: MemoryBroker::default() }
    }

    fn broker(&self) -> AnyBroker {
        AnyBroker::new(self.broker.clone())
    }

    fn parking(&self) -> Option<AnyBroker> {
        Some(AnyBroker::new(self.parking.clone()))
    }
}

antiphon_testing::broker_conformance!(Rabbitmq);
