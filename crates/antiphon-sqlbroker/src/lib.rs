//! The SQL broker without the SQL.
