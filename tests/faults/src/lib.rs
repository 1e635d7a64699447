//! The shop under faults.
