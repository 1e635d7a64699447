//! The shared level on a real server: the rules of the port, caches over it, failures.

mod common;
mod failures;
mod opening;
mod rules;
mod together;
