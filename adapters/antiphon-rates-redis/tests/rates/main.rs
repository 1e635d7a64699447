//! Shared rate limits on a real server: the suite, opening, servers that answer calls, failures.

mod common;
mod conformance;
mod failures;
mod log;
mod opening;
mod servers;
