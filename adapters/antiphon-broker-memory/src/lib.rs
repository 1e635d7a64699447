//! The broker in memory, with the same semantics as the durable ones: for tests, for the simulator,
//! and for messages that need not survive the process.
//!
//! All of it is one state behind one lock, changed by short synchronous steps that are the same in
//! every run: ordered maps, no random choice, no background task. Time is `tokio::time`, so a test
//! that pauses it decides when anything is due.
//!
//! * `state`: topics, what they retain, delayed messages, and who gets what.
//! * `group`: one group: lanes, members, what waits, what is in flight.
//! * `dead`: its dead letters.
//! * `flights`: what is in flight.
//! * `source`: a member's end.
//! * `inbox`: answers to this process.
//! * `operate`: what there is to see.

mod broker;
mod dead;
mod flights;
mod group;
mod inbox;
mod operate;
mod source;
mod state;

pub use broker::{MemoryBroker, Settings};
