//! Answering calls: one port for gRPC, gRPC-Web, Connect and REST, over HTTP/1.1 and HTTP/2.
//!
//! The layers that every call passes are listed in [`layers`].

mod answer;
mod arrived;
mod body;
mod call;
mod connection;
mod deadline;
mod general;
mod health;
pub mod layers;
mod lean;
mod listener;
mod methods;
mod metrics;
mod reflection;
mod run;
mod settings;
mod web_text;
mod wire;
mod worker;

pub use body::{Body, BodyError, RequestBody};
pub use call::{Call, CallStream};
pub use layers::{Calls, Protocol};
pub use listener::BindError;
pub use methods::{Method, ServedTwice};
pub use run::{Server, StartError};
pub use settings::{ServerSettings, Timeouts};
