//! The registry against a real etcd.

mod conformance;
mod etcd;
mod relay;
mod users;
