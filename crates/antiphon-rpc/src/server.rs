//! Answering calls: one port for gRPC, gRPC-Web, Connect and REST, over HTTP/1.1 and HTTP/2.
//!
//! The layers that every call passes are listed in [`layers`].

mod body;
mod call;
mod deadline;
pub mod layers;
mod methods;
mod metrics;
mod settings;

pub use body::{Body, BodyError, RequestBody};
pub use call::{Call, CallStream};
pub use layers::{Calls, Protocol};
pub use methods::{Method, ServedTwice};
pub use settings::{ServerSettings, Timeouts};
