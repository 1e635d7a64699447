//! The broker on a real server: the suite, opening, a failing network, foreign messages.

mod common;
mod conformance;
