//! What the suite cannot bring about: settings, faults of the network and of the server, and what
//! others put into our topics.

mod consuming;
mod custom;
mod durability;
mod inbox;
mod members;
mod opening;
mod operate;
mod publishing;
mod restarts;
#[path = "../support/scratch.rs"]
mod scratch;
mod support;
