//! The facade: what a user depends on.
//!
//! One contract (`.proto`) becomes services, events and errors through `antiphon-build`; an [`App`]
//! puts them together from settings, runs them, and drains them.

#[doc(hidden)]
#[path = "codegen.rs"]
pub mod __codegen;
mod app;
mod carriers;
mod error;
mod launch;
mod lifecycle;
#[cfg(feature = "mysql")]
pub mod mysql;
pub mod operate;
#[cfg(feature = "postgres")]
pub mod postgres;
mod registries;
mod settings;
pub mod sql;
pub mod sqlite;

pub use antiphon_cache as cache;
pub use antiphon_config::{self as config, Sources};
pub use antiphon_core::context::spawn;
pub use antiphon_core::{
    BoxError, Clock, Code, Component, Context, FieldViolation, Finding, Health, MessageId,
    Priority, Retry, RetryPolicy, Severity, Shutdown, ShutdownHandle, Stage, Status, Timestamp,
};
pub use antiphon_messaging as messaging;
pub use antiphon_messaging::{Command, Consumer, Event, Fail, Incoming, Message, Requests};
pub use antiphon_outbox::{self as outbox, Call, Handle, RequestHash};
pub use antiphon_rpc::{Streaming, client, server};
pub use antiphon_saga as saga;
pub use antiphon_telemetry::{self as telemetry, Telemetry};
pub use app::{App, Bound, Consume};
pub use error::{Error, Result};
pub use launch::launch;
pub use settings::DatabaseSettings;
