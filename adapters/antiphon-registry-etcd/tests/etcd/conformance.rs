//! The registry suite.

use std::time::Duration;

use antiphon_config::HumanDuration;
use antiphon_registry_etcd::{EtcdRegistry, Settings};
use antiphon_testing::conformance::registry::RegistryHarness;
use antiphon_testing::services::{Private, Service};

struct Etcd;

impl RegistryHarness for Etcd {
    type Registry = EtcdRegistry;
    type Server = Private;
    const LEASE_SHORT: Duration = Duration::from_secs(2);

    fn shared() -> String {
        Service::Etcd.url()
    }

    async fn start() -> Private {
        Private::start(Service::Etcd).await.expect("a server")
    }

    fn open(url: &str, lease: Duration) -> EtcdRegistry {
        let settings = Settings { lease: HumanDuration(lease), ..Settings::new(url) };
        EtcdRegistry::new(settings).expect("the settings make sense")
    }
}

antiphon_testing::registry_conformance!(Etcd);
