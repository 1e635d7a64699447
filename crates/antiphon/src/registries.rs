//! The registries that the settings name.

use std::collections::BTreeMap;
use std::sync::Arc;

use antiphon_config::{Mistake, Settings};
use antiphon_discovery::{Discovery, Registrar, Resolver};
use antiphon_telemetry::Telemetry;

use crate::error::{Error, Result};
use crate::settings::Registries;

/// What knows instances, by scheme.
#[derive(Clone, Default)]
pub(crate) struct Known {
    registrars: BTreeMap<&'static str, Arc<dyn Registrar>>,
    resolvers: BTreeMap<&'static str, Arc<dyn Resolver>>,
}

impl Known {
    /// Makes the registries that have settings. Nothing is connected yet.
    ///
    /// # Errors
    /// Settings that make no sense; a registry that this program was built without.
    pub(crate) fn open(registries: &Registries, settings: &Settings) -> Result<Self> {
        #[cfg_attr(
            not(any(
                feature = "consul",
                feature = "etcd",
                feature = "kubernetes",
                feature = "zookeeper"
            )),
            expect(unused_mut, reason = "no registry is built in")
        )]
        let mut known = Self::default();
        #[cfg(feature = "consul")]
        if let Some(section) = &registries.consul {
            let registry = antiphon_registry_consul::ConsulRegistry::new(section.clone());
            known.add("consul", registry.map_err(placed(settings, "consul"))?);
        }
        #[cfg(feature = "etcd")]
        if let Some(section) = &registries.etcd {
            let registry = antiphon_registry_etcd::EtcdRegistry::new(section.clone());
            known.add("etcd", registry.map_err(placed(settings, "etcd"))?);
        }
        #[cfg(feature = "kubernetes")]
        if let Some(section) = &registries.kubernetes {
            let resolver = antiphon_registry_kubernetes::KubernetesResolver::new(section.clone());
            let resolver = resolver.map_err(placed(settings, "kubernetes"))?;
            known.resolvers.insert("kubernetes", Arc::new(resolver));
        }
        #[cfg(feature = "zookeeper")]
        if let Some(section) = &registries.zookeeper {
            let registry = antiphon_registry_zookeeper::ZookeeperRegistry::new(section.clone());
            known.add("zookeeper", registry.map_err(placed(settings, "zookeeper"))?);
        }
        if let Some(missing) = &registries.missing {
            let problem = format!(
                "it has settings, but this program was built without the feature `{missing}` of antiphon"
            );
            return Err(settings.mistaken(&format!("registries.{missing}"), &problem).into());
        }
        Ok(known)
    }

    #[cfg_attr(
        not(any(feature = "consul", feature = "etcd", feature = "zookeeper")),
        expect(dead_code, reason = "no registry is built in")
    )]
    fn add<R: Registrar + Resolver>(&mut self, scheme: &'static str, registry: R) {
        let registry = Arc::new(registry);
        self.registrars.insert(scheme, Arc::clone(&registry) as Arc<dyn Registrar>);
        self.resolvers.insert(scheme, registry);
    }

    /// What finds instances: in these registries, and what is built in.
    pub(crate) fn discovery(
        &self,
        settings: &antiphon_discovery::Settings,
        telemetry: &Telemetry,
    ) -> Discovery {
        let built_in = Discovery::new(settings.clone()).recorded(telemetry);
        self.resolvers
            .iter()
            .fold(built_in, |discovery, (scheme, known)| discovery.with(scheme, Arc::clone(known)))
    }

    /// Where this process registers; `None` where the registry learns of instances by itself, as
    /// Kubernetes does.
    ///
    /// # Errors
    /// There are no settings for a registry of this scheme.
    pub(crate) fn registrar(&self, scheme: &str) -> Result<Option<Arc<dyn Registrar>>> {
        if self.resolvers.contains_key(scheme) && !self.registrars.contains_key(scheme) {
            return Ok(None);
        }
        let registrar = self.registrars.get(scheme).cloned().ok_or_else(|| {
            Error::mistake(format!(
                "discovery.registry is {scheme:?}, but there is no section [registries.{scheme}]; \
                 there are sections for: {}",
                match self.resolvers.keys().copied().collect::<Vec<_>>().join(", ") {
                    none if none.is_empty() => "none".to_owned(),
                    some => some,
                }
            ))
        });
        registrar.map(Some)
    }
}

/// A mistake in the settings of a registry, with its place.
#[cfg_attr(
    not(any(feature = "consul", feature = "etcd", feature = "kubernetes", feature = "zookeeper")),
    expect(dead_code, reason = "no registry is built in")
)]
fn placed(settings: &Settings, registry: &str) -> impl Fn(Mistake) -> Error {
    move |mistake| {
        let path = |setting: &str| format!("registries.{registry}.{setting}");
        Error::mistake(mistake).placed(settings, path)
    }
}
