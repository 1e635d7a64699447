//! `[instance]`: how this process is known to others; `[registries.…]`: where.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use antiphon_config::Settings;
use antiphon_discovery::{Authority, Instance};
use serde::{Deserialize, Serialize};

/// How this process is known to others.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct InstanceSection {
    /// Whether it registers in the registry that `discovery.registry` names.
    pub(crate) register: bool,
    /// Where others reach it; where it listens unless set.
    address: Option<String>,
    /// Its share of the calls, relative to the others.
    weight: u32,
    /// Where it runs.
    zone: Option<String>,
    /// What else is to be known of it.
    metadata: BTreeMap<String, String>,
}

impl Default for InstanceSection {
    fn default() -> Self {
        Self { register: true, address: None, weight: 1, zone: None, metadata: BTreeMap::new() }
    }
}

impl InstanceSection {
    /// The instance that listens on `listen`.
    ///
    /// # Errors
    /// Nobody could reach it by what is known.
    pub(crate) fn instance(&self, listen: SocketAddr) -> Result<Instance, String> {
        let address: Authority = match &self.address {
            Some(address) => {
                address.parse().map_err(|error| format!("instance.address {address:?}: {error}"))?
            }
            None if listen.ip().is_unspecified() => {
                return Err(format!(
                    "server.listen is {listen}, which nobody else can connect to; set \
                     instance.address to the host and port by which others reach this process, or \
                     instance.register = false"
                ));
            }
            None => listen.into(),
        };
        if self.weight == 0 {
            return Err("instance.weight must be at least 1".into());
        }
        Ok(Instance {
            weight: self.weight,
            zone: self.zone.clone(),
            metadata: self.metadata.clone(),
            ..Instance::new(address)
        })
    }
}

/// The registries that have settings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registries {
    #[cfg(feature = "consul")]
    pub(crate) consul: Option<antiphon_registry_consul::Settings>,
    #[cfg(feature = "etcd")]
    pub(crate) etcd: Option<antiphon_registry_etcd::Settings>,
    #[cfg(feature = "kubernetes")]
    pub(crate) kubernetes: Option<antiphon_registry_kubernetes::Settings>,
    #[cfg(feature = "zookeeper")]
    pub(crate) zookeeper: Option<antiphon_registry_zookeeper::Settings>,
    /// One that this program was built without.
    pub(crate) missing: Option<&'static str>,
}

impl Registries {
    /// Reads `[registries.…]`.
    pub(crate) fn read(settings: &Settings) -> Result<Self, antiphon_config::Error> {
        let mut registries = Self::default();
        macro_rules! read {
            ($feature:literal, $name:ident) => {
                #[cfg(feature = $feature)]
                if settings.contains(concat!("registries.", $feature)) {
                    registries.$name = Some(settings.section(concat!("registries.", $feature))?);
                }
                #[cfg(not(feature = $feature))]
                if settings.contains(concat!("registries.", $feature)) {
                    registries.missing = Some($feature);
                    // Its keys are none that anybody here knows.
                    let _: BTreeMap<String, serde_json::Value> =
                        settings.section(concat!("registries.", $feature))?;
                }
            };
        }
        read!("consul", consul);
        read!("etcd", etcd);
        read!("kubernetes", kubernetes);
        read!("zookeeper", zookeeper);
        Ok(registries)
    }
}

#[cfg(test)]
mod tests {
    use antiphon_config::Sources;

    use super::*;

    fn instance(text: &str, listen: &str) -> Result<Instance, String> {
        let settings = Settings::load(&Sources::new().text("antiphon.toml", text)).unwrap();
        let section: InstanceSection = settings.section("instance").unwrap();
        section.instance(listen.parse().unwrap())
    }

    #[test]
    fn a_process_is_known_by_where_it_listens_or_by_what_is_said() {
        let plain = instance("", "127.0.0.1:8080").unwrap();
        assert_eq!((plain.address.to_string(), plain.weight), ("127.0.0.1:8080".into(), 1));
        let text = "[instance]\naddress = \"orders-1:80\"\nweight = 3\nzone = \"a\"\n";
        let told = instance(text, "0.0.0.0:8080").unwrap();
        assert_eq!((told.address.to_string(), told.weight), ("orders-1:80".into(), 3));
        assert_eq!(told.zone.as_deref(), Some("a"));
    }

    #[test]
    fn what_nobody_could_reach_is_refused() {
        let refused = |text: &str, listen: &str| instance(text, listen).unwrap_err();
        assert!(refused("", "0.0.0.0:8080").contains("instance.address"));
        assert!(refused("", "[::]:8080").contains("instance.address"));
        assert!(refused("[instance]\naddress = \"nowhere\"", "127.0.0.1:1").contains("nowhere"));
        assert!(refused("[instance]\nweight = 0", "127.0.0.1:1").contains("at least 1"));
    }
}
