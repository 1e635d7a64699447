//! The broker on a real server: the suite, opening, a failing network, foreign messages.

#![expect(clippy::panic, reason = "a test that cannot go on panics")]

mod common;
mod conformance;
mod faults;
mod foreign;
mod opening;
