//! Conformance suites, simulator, assertions.
