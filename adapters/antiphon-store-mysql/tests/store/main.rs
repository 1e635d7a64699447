//! The MySQL store against a real MariaDB server.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

mod conformance;
mod database;
mod faults;
mod opening;
mod sagas;
mod transactions;
