//! Pure policies that keep a service useful under more load than it can carry.
//!
//! Each policy is a function from what was seen to what to do next, tested by tables; the types that
//! callers hold add only counters around it.

pub mod backoff;
pub mod budget;
pub mod bulkhead;
pub mod ejection;
pub mod hedge;
pub mod limit;
mod quantile;
pub mod retry;
pub mod throttle;
pub mod verdict;
mod window;

pub use backoff::Backoff;
pub use budget::{Budget, BudgetSettings};
pub use bulkhead::{Bulkhead, BulkheadSettings, Permit, Refused};
pub use ejection::{EjectionSettings, Ejector, Health, Probe};
pub use hedge::{Hedge, HedgeError, HedgeSettings};
pub use limit::{AdaptiveLimit, LimitSettings, Outcome};
pub use retry::{Attempts, Permission, RetryPolicy};
pub use throttle::{Throttle, ThrottleSettings};
pub use verdict::{Origin, Verdict};
