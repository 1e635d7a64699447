//! Conformance suites, simulator, assertions.

pub mod conformance;
pub mod memory_store;
pub mod otlp;

pub use memory_store::MemoryStore;
