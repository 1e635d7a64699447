//! Outbox, inbox, sagas, dead letters and the SQL broker on MySQL and MariaDB.
//!
//! [`MysqlStore`] keeps the rows of one service in one database: its own tables, which user code
//! reads and writes with `sqlx`, and beside them the framework's (outbox, inbox, leases, stored
//! answers, sagas). [`MysqlBroker`] keeps topics, groups and dead letters in a database of its own,
//! which the processes of all services share. Statements are of the subset that MySQL 8 and MariaDB 10.6 share.

mod broker;
mod connect;
mod error;
mod location;
mod migrate;
mod schema;
mod server;
mod session;
mod settings;
mod sql;
mod store;
mod time;

pub use antiphon_outbox::Migration;
pub use broker::MysqlBroker;
pub use error::OpenError;
pub use settings::Settings;
pub use store::{Connection, MysqlStore};
