//! Services whose rows lie in PostgreSQL only: the store, under short names.

pub use antiphon_outbox::Migration;
pub use antiphon_store_postgres::{
    OpenError, PostgresBroker, PostgresStore as Postgres, Settings, SynchronousCommit,
};
pub use sqlx;

/// The database of a service.
pub type Database = antiphon_outbox::Database<Postgres>;

/// One transaction of a service's database.
pub type Tx = antiphon_outbox::Tx<Postgres>;
