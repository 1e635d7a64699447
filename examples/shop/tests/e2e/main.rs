//! The shop as its users run it: real processes, real sockets, real kills.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod cache;
mod cards;
mod discovery;
mod fleet;
mod harness;
mod kill;
mod mistakes;
mod routes;
mod shutdown;
mod trace;
