//! Conformance suites, simulator, assertions.

pub mod conformance;
