//! Outbox, inbox, sagas, dead letters and the SQL broker on PostgreSQL.
//!
//! * [`PostgresStore`] keeps the rows of one service in one database: its own tables, which user
//!   code reads and writes with `sqlx`, and beside them the framework's (outbox, inbox, leases,
//!   stored answers, sagas). All processes of the service share it.
//! * [`PostgresBroker`] keeps topics, groups and dead letters in a database of its own, which the
//!   processes of all services share.

mod broker;
mod connect;
mod error;
mod location;
mod migrate;
mod pool;
mod schema;
mod settings;
mod store;

pub use antiphon_outbox::Migration;
pub use broker::PostgresBroker;
pub use error::OpenError;
pub use settings::{Settings, SynchronousCommit};
pub use store::{Connection, PostgresStore};
