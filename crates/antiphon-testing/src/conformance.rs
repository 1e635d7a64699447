//! Suites that every adapter of a port must pass: one test per numbered rule of the port.

pub mod broker;
pub mod rate_store;
pub mod registry;
pub mod resolver;
pub mod saga;
pub mod shared_level;
pub mod sql_broker;
pub mod store;
