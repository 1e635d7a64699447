//! Outbox, inbox, sagas, dead letters and the SQL broker on SQLite.
