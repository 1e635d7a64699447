//! The broker on a real server: the suite, opening, a failing network, foreign messages.

mod common;
mod conformance;
mod faults;
mod foreign;
mod opening;
