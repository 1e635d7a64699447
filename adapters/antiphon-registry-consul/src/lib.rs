//! The registry on Consul.
//!
//! An instance is a service of the local agent with a check that it must renew; callers ask for the
//! instances whose checks pass, by queries that the agent answers when something changes.
//! `README.md` has the whole mapping.

mod agent;
mod entry;
mod index;
mod names;
mod registry;
mod settings;
mod watch;
mod wire;

pub use registry::ConsulRegistry;
pub use settings::Settings;
