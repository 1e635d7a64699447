//! The resolver suite.

use std::net::SocketAddr;

use antiphon_registry_kubernetes::KubernetesResolver;
use antiphon_testing::conformance::resolver::ResolverHarness;

use crate::server::{ApiServer, settings};

struct Kubernetes {
    server: ApiServer,
    address: SocketAddr,
}

impl ResolverHarness for Kubernetes {
    type Resolver = KubernetesResolver;

    async fn start() -> Self {
        let (server, address) = ApiServer::start(Vec::new()).await;
        Self { server, address }
    }

    fn resolver(&self) -> KubernetesResolver {
        KubernetesResolver::new(settings(self.address)).expect("the settings make sense")
    }

    fn name(&self) -> String {
        "shop/orders".to_owned()
    }

    fn hold(&self, addresses: &[&str]) {
        let hosts: Vec<&str> =
            addresses.iter().map(|address| address.trim_end_matches(":8080")).collect();
        self.server.hold(&hosts);
    }

    fn fail(&self, failing: bool) {
        self.server.fail(failing);
    }
}

antiphon_testing::resolver_conformance!(Kubernetes);
