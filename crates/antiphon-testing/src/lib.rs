//! Conformance suites, simulator, assertions.

pub mod conformance;
pub mod otlp;
pub mod memory_store;

pub use memory_store::MemoryStore;
