//! The broker in memory, with the same semantics as the durable ones.
