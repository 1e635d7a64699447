//! The registry suite.

use std::time::Duration;

use antiphon_config::HumanDuration;
use antiphon_registry_zookeeper::{Settings, ZookeeperRegistry};
use antiphon_testing::conformance::registry::RegistryHarness;
use antiphon_testing::services::{Private, Service};

struct Zookeeper;

impl RegistryHarness for Zookeeper {
    type Registry = ZookeeperRegistry;
    type Server = Private;
    const LEASE_SHORT: Duration = Duration::from_secs(2);

    fn shared() -> String {
        Service::Zookeeper.url()
    }

    async fn start() -> Private {
        Private::start(Service::Zookeeper).await.expect("a server")
    }

    fn open(url: &str, lease: Duration) -> ZookeeperRegistry {
        let settings = Settings { lease: HumanDuration(lease), ..Settings::new(url) };
        ZookeeperRegistry::new(settings).expect("the settings make sense")
    }
}

antiphon_testing::registry_conformance!(Zookeeper);
