//! The resolver suite, against a real API server.

use antiphon_registry_kubernetes::KubernetesResolver;
use antiphon_testing::conformance::resolver::ResolverHarness;
use antiphon_testing::services::Service;

use crate::cluster::{ADMIN, Cluster};

impl ResolverHarness for Cluster {
    type Resolver = KubernetesResolver;

    async fn start() -> Self {
        Self::at(&Service::Kubernetes.url()).await
    }

    fn resolver(&self) -> KubernetesResolver {
        KubernetesResolver::new(self.settings(ADMIN)).expect("the settings make sense")
    }

    fn name(&self) -> String {
        self.name()
    }

    fn hold(&self, addresses: &[&str]) {
        let hosts: Vec<&str> =
            addresses.iter().map(|address| address.trim_end_matches(":8080")).collect();
        self.hosts("orders-1", &hosts);
    }

    fn fail(&self, failing: bool) {
        self.fail(failing);
    }
}

antiphon_testing::resolver_conformance!(Cluster);
