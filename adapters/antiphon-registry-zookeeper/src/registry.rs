//! The registry.

use antiphon_config::Mistake;
use antiphon_discovery::{Answers, Entry, Registrar, Resolver};

use crate::Settings;
use crate::entry::Node;
use crate::session::Session;
use crate::watch::Nodes;

/// The registry on ZooKeeper. Cheap to clone; clones share one session, which ends, with all nodes in
/// it, when the last of them and of what they gave out is dropped.
#[derive(Clone, Debug)]
pub struct ZookeeperRegistry(Session);

impl ZookeeperRegistry {
    /// A registry with these settings. Connects when it is asked something.
    ///
    /// # Errors
    /// The settings make no sense; the error says which.
    pub fn new(settings: Settings) -> Result<Self, Mistake> {
        settings.check()?;
        Ok(Self(Session::new(settings)))
    }
}

impl Resolver for ZookeeperRegistry {
    fn watch(&self, name: &str) -> Box<dyn Answers> {
        Box::new(Nodes::new(self.0.clone(), name))
    }
}

impl Registrar for ZookeeperRegistry {
    fn entry(&self, service: &str) -> Box<dyn Entry> {
        Box::new(Node::new(self.0.clone(), service))
    }
}
