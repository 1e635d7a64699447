//! Answering and calling.
//!
//! A [`Service`] is what generated code makes of a user's handlers: methods by number, bytes in and
//! out. `server` answers it over gRPC, gRPC-Web, Connect and REST on one port; `client` reaches it,
//! over the network or in the same process.

pub mod client;
mod fields;
mod headers;
pub mod message;
pub mod rest;
pub mod server;
pub mod service;
mod status_wire;

pub use service::{
    Codec, Encoded, Idempotency, MethodInfo, MethodKind, Service, ServiceInfo, Streaming,
};
