//! A prefix of the broker's topics that belongs to one test.

use antiphon_broker_mqtt::{MqttBroker, Settings};
use antiphon_messaging::Broker;
use antiphon_testing::services::Service;

/// A prefix that nobody else uses. What is below it is removed in the end.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) settings: Settings,
}

impl Scratch {
    /// At the server that all tests share.
    pub(crate) fn new() -> Self {
        let mut settings = Settings::at(Service::Mosquitto.url());
        settings.prefix = format!("test-{:016x}", fastrand::u64(..));
        Self { settings }
    }

    pub(crate) async fn open(&self) -> MqttBroker {
        MqttBroker::open(self.settings.clone()).await.unwrap_or_else(|error| {
            unreachable!("{error}; start the server with `cargo xtask services up mosquitto`")
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let settings = self.settings.clone();
        let clean = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                // A server of the test's own may be gone already, and all with it.
                let Ok(broker) = MqttBroker::open(settings).await else { return };
                let operate = broker.operate().expect("it can be looked at");
                for group in operate.groups().await.unwrap_or_default() {
                    let _ = broker.remove_group(&group.name).await;
                }
                for topic in operate.topics().await.unwrap_or_default() {
                    let _ = broker.remove_topic(&topic.name).await;
                }
            });
        };
        let _ = std::thread::spawn(clean).join();
    }
}
