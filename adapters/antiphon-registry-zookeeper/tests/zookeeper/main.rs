//! The registry against a real ZooKeeper, and against a server that grants less than is asked for.

mod conformance;
mod server;
mod zookeeper;
