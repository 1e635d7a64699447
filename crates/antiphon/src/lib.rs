//! The facade: what a user depends on.
