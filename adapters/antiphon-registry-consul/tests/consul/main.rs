//! The registry against an agent that does what Consul's API documents; see [`agent`].

mod agent;
mod conformance;
mod consul;
