//! Pure policies that keep a service useful under more load than it can carry.
//!
//! Each policy is a function from what was seen to what to do next, tested by tables; the types that
//! callers hold add only counters around it.

pub mod balance;
pub mod limit;

pub use limit::{AdaptiveLimit, LimitSettings, Outcome};
