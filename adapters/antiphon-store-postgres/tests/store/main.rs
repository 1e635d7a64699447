//! The PostgreSQL store against a real server: the suites of the ports, and what it promises beyond
//! them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod behaviour;
mod conformance;
mod faults;
mod opening;
mod relay;
mod sagas;
mod support;
