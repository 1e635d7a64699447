//! The registry suite.

use std::time::Duration;

use antiphon_config::HumanDuration;
use antiphon_registry_consul::{ConsulRegistry, Settings};
use antiphon_testing::conformance::registry::RegistryHarness;
use antiphon_testing::services::{Private, Service};

struct Consul;

impl RegistryHarness for Consul {
    type Registry = ConsulRegistry;
    type Server = Private;
    const LEASE_SHORT: Duration = Duration::from_secs(2);

    fn shared() -> String {
        Service::Consul.url()
    }

    async fn start() -> Private {
        Private::start(Service::Consul).await.expect("a server")
    }

    fn open(url: &str, lease: Duration) -> ConsulRegistry {
        let settings = Settings {
            lease: HumanDuration(lease),
            request_timeout: HumanDuration::from_secs(1),
            wait: HumanDuration::from_secs(5),
            ..Settings::new(url)
        };
        ConsulRegistry::new(settings).expect("the settings make sense")
    }
}

antiphon_testing::registry_conformance!(Consul);
