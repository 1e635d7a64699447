//! Services whose rows lie in SQLite: the store, under short names.

pub use antiphon_store_sqlite::{
    Migration, OpenError, Settings, SqliteBroker, SqliteStore as Sqlite, Synchronous,
};
pub use sqlx;

/// The database of a service.
pub type Database = antiphon_outbox::Database<Sqlite>;

/// One transaction of a service's database.
pub type Tx = antiphon_outbox::Tx<Sqlite>;
