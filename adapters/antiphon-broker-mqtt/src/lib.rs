//! The broker on MQTT 5: Mosquitto and other servers of that protocol.
//!
//! MQTT knows connections, sessions and subscriptions. Topics are divided into lanes, and each lane
//! of a group is a persistent session: the server keeps what comes for it, one connection at a time
//! reads it, and what was not acknowledged comes again to the next. The members of a group agree by
//! retained notes on who has which lane. The README says how everything maps, and what a server
//! loses.

mod broker;
mod connect;
mod connection;
mod envelope;
mod error;
mod hub;
mod inbox;
mod look;
mod member;
mod names;
mod operate;
mod publish;
mod registry;
mod settings;
mod settle;
mod share;
mod shelf;
mod source;
mod topology;

pub use broker::MqttBroker;
pub use error::OpenError;
pub use settings::{Acknowledge, Keeping, Settings, SettingsError, Unread};
