//! The broker against a real Kafka: `cargo xtask services up kafka` starts it. Some tests treat a
//! broker badly; they start one for themselves.

mod common;
mod conformance;
mod envelope;
mod faults;
mod group;
mod open;
mod publish;
mod storm;
