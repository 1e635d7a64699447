//! Broker ports, envelope and the consumer engine.
