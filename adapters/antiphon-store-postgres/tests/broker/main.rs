//! The SQL broker on a real PostgreSQL: every rule of the broker ports, and what it promises beyond.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

mod conformance;
mod processes;
mod support;
