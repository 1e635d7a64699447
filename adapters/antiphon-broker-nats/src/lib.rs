//! The broker on NATS JetStream.
//!
//! A topic is a stream with a subject for each lane of keys. A group that reads in any order is one
//! durable consumer per topic, shared by its members. A group that reads in order divides the lanes
//! among its members by leases in a key-value bucket; each owner reads its lanes alone and writes down
//! there what is done. `README.md` has the whole mapping.

mod broker;
mod connection;
mod error;
mod inbox;
mod keeper;
mod login;
mod member;
mod names;
mod operate;
mod publish;
mod pull;
mod records;
mod roster;
mod settings;
mod source;
mod topology;
mod wire;

pub use broker::NatsBroker;
pub use error::OpenError;
pub use settings::Settings;
