//! Outbox, inbox, sagas, dead letters and the SQL broker on SQLite.
//!
//! * [`SqliteStore`] keeps the rows of one service in one file: its own tables, which user code
//!   reads and writes with `sqlx`, and beside them the framework's (outbox, inbox, leases, stored
//!   answers).
//! * [`SqliteBroker`] keeps topics, groups and dead letters in a file of its own, which the
//!   processes of all services share.
//!
//! Files may be shared by the processes of one machine, not over a network file system.

mod broker;
mod error;
mod location;
mod migrate;
mod schema;
mod settings;
mod store;

pub use antiphon_outbox::Migration;
pub use broker::SqliteBroker;
pub use error::OpenError;
pub use settings::{Settings, Synchronous};
pub use store::{Connection, SqliteStore};
