//! Store and SQL broker on MySQL and MariaDB.
