//! The broker suite against the real server.

#[path = "support/vhost.rs"]
mod vhost;

use antiphon_broker_memory::MemoryBroker;
use antiphon_broker_rabbitmq::{RabbitmqBroker, Settings};
use antiphon_messaging::AnyBroker;
use antiphon_testing::conformance::broker::BrokerHarness;

use vhost::Vhost;

struct Rabbitmq {
    broker: RabbitmqBroker,
    /// Delays messages and keeps dead letters, which RabbitMQ does not.
    parking: MemoryBroker,
    /// Goes after everything that uses it.
    _vhost: Vhost,
}

impl BrokerHarness for Rabbitmq {
    async fn start() -> Self {
        let vhost = Vhost::create().await;
        let opened = RabbitmqBroker::open(Settings::at(vhost.url())).await;
        let broker = opened.unwrap_or_else(|error| {
            unreachable!("{error}; start it with `cargo xtask services up rabbitmq`")
        });
        Self { broker, parking: MemoryBroker::default(), _vhost: vhost }
    }

    fn broker(&self) -> AnyBroker {
        AnyBroker::new(self.broker.clone())
    }

    fn parking(&self) -> Option<AnyBroker> {
        Some(AnyBroker::new(self.parking.clone()))
    }
}

antiphon_testing::broker_conformance!(Rabbitmq);
