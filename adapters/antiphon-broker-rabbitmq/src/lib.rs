//! The broker on RabbitMQ.
//!
//! A topic is a durable topic exchange, a group one quorum queue, an ordered group a few quorum
//! queues with a single active consumer each, which its members share. Publishing is confirmed,
//! acknowledging is not waited for. See the README for the whole mapping, and for what RabbitMQ
//! cannot do and the consumer engine does instead.

mod broker;
mod connection;
mod envelope;
mod error;
mod held;
mod inbox;
mod member;
mod names;
mod operate;
mod presence;
mod probe;
mod publish;
mod registry;
mod settings;
mod settle;
mod source;
mod topology;

pub use broker::RabbitmqBroker;
pub use error::OpenError;
pub use settings::{Settings, SettingsError, Unread};
