//! The shared level on a real server: the suite, caches over it, failures.

mod common;
mod conformance;
mod failures;
mod opening;
mod together;
