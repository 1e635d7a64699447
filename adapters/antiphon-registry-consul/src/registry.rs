//! The registry.

use antiphon_config::Mistake;
use antiphon_discovery::{Answers, Entry, Registrar, Resolver};

use crate::Settings;
use crate::agent::Agent;
use crate::entry::Check;
use crate::watch::Passing;

/// The registry on Consul. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ConsulRegistry(Agent);

impl ConsulRegistry {
    /// A registry with these settings. Connects when it is asked something.
    ///
    /// # Errors
    /// The settings make no sense, or a file of theirs cannot be read; the error says which.
    pub fn new(settings: Settings) -> Result<Self, Mistake> {
        Agent::new(settings).map(Self)
    }
}

impl Resolver for ConsulRegistry {
    fn watch(&self, name: &str) -> Box<dyn Answers> {
        Box::new(Passing::new(self.0.clone(), name))
    }
}

impl Registrar for ConsulRegistry {
    fn entry(&self, service: &str) -> Box<dyn Entry> {
        Box::new(Check::new(self.0.clone(), service))
    }
}
