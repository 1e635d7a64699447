//! The registry suite.

use std::time::Duration;

use antiphon_config::HumanDuration;
use antiphon_registry_consul::{ConsulRegistry, Settings};
use antiphon_testing::conformance::registry::RegistryHarness;

use crate::agent::{self, Agent};

struct Consul;

impl RegistryHarness for Consul {
    type Registry = ConsulRegistry;
    type Server = Agent;
    const LEASE_SHORT: Duration = Duration::from_secs(2);

    fn shared() -> String {
        agent::shared()
    }

    async fn start() -> Agent {
        Agent::new().await
    }

    fn open(url: &str, lease: Duration) -> ConsulRegistry {
        let second = HumanDuration::from_secs(1);
        let settings = Settings {
            lease: HumanDuration(lease),
            request_timeout: second,
            wait: HumanDuration::from_secs(5),
            ..Settings::new(url)
        };
        ConsulRegistry::new(settings).expect("the settings make sense")
    }
}

antiphon_testing::registry_conformance!(Consul);
