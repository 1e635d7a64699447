//! Answering calls: one port for gRPC, gRPC-Web, Connect and REST, over HTTP/1.1 and HTTP/2.
//!
//! The layers that every call passes are listed in [`layers`].

mod admission;
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
mod rates;
mod reflection;
mod run;
mod settings;
mod watch;
mod web_text;
mod wire;
mod worker;

pub use antiphon_resilience::{CpuSettings, CpuUse, LimitSettings, RateSettings, RateStore};
pub use body::{Body, BodyError, RequestBody};
pub use call::{Call, CallStream};
pub use http::HeaderName;
pub use layers::{Calls, Protocol};
pub use listener::BindError;
pub use methods::{Method, ServicesError};
pub use rates::{RateLimitError, RateSharing};
pub use run::{Server, StartError};
pub use settings::{RateRule, ServerSettings, Timeouts};
