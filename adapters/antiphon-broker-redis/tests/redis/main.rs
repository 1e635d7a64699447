//! The broker on a real server: the suite, opening, a failing network, foreign messages, trimming.

mod common;
mod conformance;
mod faults;
mod foreign;
mod opening;
mod trimming;
