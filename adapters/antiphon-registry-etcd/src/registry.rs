//! The registry.

use antiphon_config::Mistake;
use antiphon_discovery::{Answers, Entry, Registrar, Resolver};

use crate::Settings;
use crate::client::Client;
use crate::entry::Key;
use crate::watch::Keys;

/// The registry on etcd. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EtcdRegistry(Client);

impl EtcdRegistry {
    /// A registry with these settings. Connects when it is asked something.
    ///
    /// # Errors
    /// The settings make no sense, or a file of theirs cannot be read; the error says which.
    pub fn new(settings: Settings) -> Result<Self, Mistake> {
        Client::new(settings).map(Self)
    }
}

impl Resolver for EtcdRegistry {
    fn watch(&self, name: &str) -> Box<dyn Answers> {
        Box::new(Keys::new(self.0.clone(), name))
    }
}

impl Registrar for EtcdRegistry {
    fn entry(&self, service: &str) -> Box<dyn Entry> {
        Box::new(Key::new(self.0.clone(), service))
    }
}
