//! The registry against a real Consul, and against an agent that says odd things.

mod agent;
mod conformance;
mod consul;
