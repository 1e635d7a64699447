//! Services whose rows lie in MySQL or MariaDB only: the store, under short names.

pub use antiphon_outbox::Migration;
pub use antiphon_store_mysql::{MysqlBroker, MysqlStore as Mysql, OpenError, Settings};
pub use sqlx;

/// The database of a service.
pub type Database = antiphon_outbox::Database<Mysql>;

/// One transaction of a service's database.
pub type Tx = antiphon_outbox::Tx<Mysql>;
