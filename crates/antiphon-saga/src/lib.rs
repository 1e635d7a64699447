//! Saga definition, pure step machine, ports.
