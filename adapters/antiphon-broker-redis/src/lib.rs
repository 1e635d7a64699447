//! The broker on Redis Streams.
//!
//! A topic is one stream. A group that reads in any order is a consumer group of it; what is given back
//! waits in a sorted set until it is due. A group that reads in order divides the lanes of keys among
//! its members by leases; each owner keeps what is done of its lanes, and writes it down in a record
//! that it can only write while it owns the lane. `README.md` has the whole mapping.

mod broker;
mod connection;
mod error;
mod inbox;
mod keeper;
mod member;
mod names;
mod operate;
mod outbox;
mod publish;
mod scripts;
mod settings;
mod source;
mod topology;
mod trim;
mod wire;

pub use broker::RedisBroker;
pub use error::OpenError;
pub use settings::Settings;
