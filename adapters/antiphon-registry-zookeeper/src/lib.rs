//! The registry on ZooKeeper.
//!
//! An instance is an ephemeral node below the node of its service: it lives as long as the session of
//! the process that created it. Callers list the nodes of a service and follow what happens to them
//! by a persistent watch. `README.md` has the whole mapping.

mod entry;
mod paths;
mod registry;
mod session;
mod settings;
mod watch;

pub use registry::ZookeeperRegistry;
pub use settings::Settings;
