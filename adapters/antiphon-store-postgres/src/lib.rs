//! Store and SQL broker on PostgreSQL.
