//! The shared level on a real server: the rules of the port, caches over it, failures.

#![expect(clippy::panic, reason = "a test that cannot go on panics")]

mod common;
mod failures;
mod opening;
mod rules;
mod together;
