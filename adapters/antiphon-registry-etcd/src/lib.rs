//! The registry on etcd.
//!
//! An instance is a key under the name of its service, held by a lease. Callers read all keys of a
//! service at some revision and then follow what happens after it. It speaks the JSON form of etcd's
//! API (its gRPC gateway). `README.md` has the whole mapping.

mod client;
mod entry;
mod keys;
mod registry;
mod settings;
mod watch;
mod wire;

pub use registry::EtcdRegistry;
pub use settings::Settings;
