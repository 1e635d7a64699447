//! Conformance suites, simulator, assertions.

pub mod conformance;
pub mod memory_store;
pub mod otlp;
pub mod proxy;
pub mod services;

pub use memory_store::MemoryStore;
