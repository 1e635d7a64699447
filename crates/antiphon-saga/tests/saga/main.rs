//! Sagas from start to end, over the store and the broker in memory, with paused time.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod commands;
mod coordinator;
mod definition;
mod desk;
mod messages;
mod operator;
