//! Reads descriptors into one model of services, routes, policies, events and errors.

pub mod template;
