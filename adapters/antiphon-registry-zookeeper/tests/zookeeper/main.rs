//! The registry against a real ZooKeeper.

mod conformance;
mod zookeeper;
