//! Outbox, inbox, sagas, dead letters and the SQL broker on PostgreSQL.

mod connect;
mod error;
mod location;
mod settings;

pub use error::OpenError;
pub use settings::{Settings, SynchronousCommit};
