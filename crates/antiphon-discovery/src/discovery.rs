//! From a target to the instances behind it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use antiphon_telemetry::Telemetry;

use crate::dns::{Lookup, Question};
use crate::file::Listed;
use crate::fixed::Fixed;
use crate::target::{BUILT_IN, is_scheme};
use crate::{Answers, Instance, Resolver, Settings, Target, Watch};

/// Watches targets: those of the registries that it was given, and what is built in. Cheap to clone.
#[derive(Clone)]
pub struct Discovery {
    settings: Settings,
    registries: BTreeMap<String, Arc<dyn Resolver>>,
    telemetry: Option<Telemetry>,
}

/// A target cannot be watched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// A service of this process has no instances elsewhere.
    #[error("`inproc:` is a service of this process; there is nothing to watch")]
    Inproc,
    /// The target names no registry, and the settings do not either.
    #[error(
        "`{0}` names a service and no registry; set `registry`, or write the target with a scheme, as \
         `{example}:///{0}`", example = .1.as_deref().unwrap_or("REGISTRY")
    )]
    NoRegistry(String, Option<String>),
    /// There is no such registry.
    #[error("there is no registry `{scheme}` for `{target}`; there is: {}", listed(.known))]
    UnknownRegistry {
        /// The target.
        target: String,
        /// Its scheme.
        scheme: String,
        /// The schemes that there are.
        known: Vec<String>,
    },
}

fn listed(schemes: &[String]) -> String {
    if schemes.is_empty() { "none".to_owned() } else { schemes.join(", ") }
}

impl Discovery {
    /// Fixed lists, files and DNS.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, registries: BTreeMap::new(), telemetry: None }
    }

    /// Adds a registry: targets `scheme:///name` are asked of it, and those without a scheme when
    /// [`Settings::registry`] says so.
    ///
    /// # Panics
    /// The scheme is one of those that are built in, or no scheme.
    #[must_use]
    pub fn with(mut self, scheme: &str, registry: Arc<dyn Resolver>) -> Self {
        assert!(is_scheme(scheme) && !BUILT_IN.contains(&scheme), "`{scheme}` is not free");
        self.registries.insert(scheme.to_owned(), registry);
        self
    }

    /// Shows in these metrics what is known of each target, and how its registry answers.
    #[must_use]
    pub fn recorded(mut self, telemetry: &Telemetry) -> Self {
        self.telemetry = Some(telemetry.clone());
        self
    }

    /// Begins to watch a target, on the runtime that is current here.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    ///
    /// # Errors
    /// The target is in no registry that there is. That a registry does not answer is no error here:
    /// [`Watch::trust`] tells.
    pub fn watch(&self, target: &Target) -> Result<Watch, WatchError> {
        let answers = self.answers(target)?;
        let (name, settings) = (target.to_string(), self.settings.keeper());
        Ok(Watch::launch(name, answers, settings, self.telemetry.as_ref()))
    }

    /// What is known of a target without the keeper between, as a registry says it.
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub fn answers(&self, target: &Target) -> Result<Box<dyn Answers>, WatchError> {
        match target {
            Target::Static(list) => {
                let instances = list.iter().cloned().map(Instance::new).collect();
                Ok(Box::new(Fixed::new(instances)))
            }
            Target::Dns { server, name } => {
                let question = Question::Addresses(name.clone());
                Ok(Box::new(Lookup::new(self.name_servers(*server), question)))
            }
            Target::Srv { server, name } => {
                let question = Question::Srv(name.clone());
                Ok(Box::new(Lookup::new(self.name_servers(*server), question)))
            }
            Target::File { path, list } => Ok(Box::new(Listed::new(path.clone(), list.clone()))),
            Target::Inproc => Err(WatchError::Inproc),
            Target::Registry { scheme, name } => {
                let Some(scheme) = scheme.as_ref().or(self.settings.registry.as_ref()) else {
                    let example = self.registries.keys().next().cloned();
                    return Err(WatchError::NoRegistry(name.clone(), example));
                };
                let registry = self.registries.get(scheme).ok_or_else(|| {
                    let known = self.registries.keys().cloned().collect();
                    let (target, scheme) = (target.to_string(), scheme.clone());
                    WatchError::UnknownRegistry { target, scheme, known }
                })?;
                Ok(registry.watch(name))
            }
        }
    }

    /// Who is asked for a name: the server that its target names, or those of the settings. Nobody
    /// means those of the system.
    fn name_servers(&self, of_target: Option<SocketAddr>) -> Vec<SocketAddr> {
        match of_target {
            Some(server) => vec![server],
            None => self.settings.dns.servers.iter().map(|server| server.0).collect(),
        }
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registries: Vec<_> = self.registries.keys().collect();
        f.debug_struct("Discovery")
            .field("settings", &self.settings)
            .field("registries", &registries)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Registry;

    impl Resolver for Registry {
        fn watch(&self, name: &str) -> Box<dyn Answers> {
            let port = u16::try_from(name.len()).unwrap();
            let address = crate::Authority { host: name.replace('/', "."), port };
            Box::new(Fixed::new(vec![Instance::new(address)]))
        }
    }

    fn discovery(registry: Option<&str>) -> Discovery {
        let settings = Settings { registry: registry.map(str::to_owned), ..Settings::default() };
        Discovery::new(settings).with("odd", Arc::new(Registry))
    }

    async fn addresses(discovery: &Discovery, target: &str) -> Vec<String> {
        let mut watch = discovery.watch(&target.parse().unwrap()).unwrap();
        let snapshot = watch.known().await;
        snapshot.instances.iter().map(|instance| instance.address.to_string()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn targets_are_asked_of_their_registry() {
        let discovery = discovery(Some("odd"));
        assert_eq!(addresses(&discovery, "odd:///shop/orders").await, ["shop.orders:11"]);
        assert_eq!(addresses(&discovery, "orders").await, ["orders:6"]);
        assert_eq!(addresses(&discovery, "static:b:2,a:1").await, ["a:1", "b:2"]);
    }

    #[test]
    fn a_target_names_its_name_server_and_the_settings_those_of_all_others() {
        let own = "127.0.0.1:5353".parse().unwrap();
        let mut settings = Settings::default();
        assert_eq!(Discovery::new(settings.clone()).name_servers(None), []);
        assert_eq!(Discovery::new(settings.clone()).name_servers(Some(own)), [own]);
        settings.dns.servers = vec!["10.0.0.53".parse().unwrap(), "[::1]:5353".parse().unwrap()];
        let discovery = Discovery::new(settings);
        let of_all = ["10.0.0.53:53", "[::1]:5353"].map(|text| text.parse().unwrap());
        assert_eq!(discovery.name_servers(None), of_all);
        assert_eq!(discovery.name_servers(Some(own)), [own]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_watched_is_told_with_what_can() {
        let words = |discovery: &Discovery, target: &str| {
            discovery.watch(&target.parse().unwrap()).unwrap_err().to_string()
        };
        let discovery = discovery(None);
        assert!(words(&discovery, "orders").contains("odd:///orders"));
        assert!(words(&discovery, "consul:///orders").contains("there is: odd"));
        assert!(words(&discovery, "inproc:").contains("this process"));
    }
}
