//! What the tests have in common: a prefix of their own at the shared server.

use antiphon_broker_mqtt::{MqttBroker, Settings};
use antiphon_testing::services::Service;

/// A prefix that nobody else uses.
pub(crate) struct Scratch {
    pub(crate) settings: Settings,
}

impl Scratch {
    pub(crate) async fn new() -> Self {
        let mut settings = Settings::at(Service::Mosquitto.url());
        settings.prefix = format!("test-{:016x}", fastrand::u64(..));
        Self { settings }
    }

    pub(crate) async fn open(&self) -> MqttBroker {
        let opened = MqttBroker::open(self.settings.clone()).await;
        opened.unwrap_or_else(|error| {
            panic!("{error}; start the server with `cargo xtask services up mosquitto`")
        })
    }
}
