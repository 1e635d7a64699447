//! The command against systems on SQLite, whose files are all it needs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod dead;
mod mistakes;
mod support;
