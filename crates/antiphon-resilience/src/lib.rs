//! Pure policies that keep a service useful under more load than it can carry, and its callers when
//! what they call fails.
//!
//! Each policy is a function from what was seen to what to do next, tested by tables; the types that
//! callers hold add only counters around it. Time and chance are arguments. While all is well a call
//! costs each policy an atomic operation or two, no lock and no memory.
//!
//! Who calls: [`bulkhead`] (a place among the calls to the target), [`retry`] with [`backoff`] and
//! [`budget`], [`hedge`], [`throttle`], [`ejection`]; [`verdict`] is what an answer says about the
//! target. Who answers: [`limit`] with [`Priority`], [`cpu`], [`rate`], [`fairness`].

pub mod backoff;
pub mod balance;
pub mod budget;
pub mod bulkhead;
pub mod cpu;
pub mod ejection;
pub mod fairness;
pub mod hedge;
pub mod limit;
mod quantile;
pub mod rate;
pub mod retry;
pub mod throttle;
pub mod verdict;
mod window;

pub use antiphon_core::Priority;
pub use backoff::Backoff;
pub use budget::{Budget, BudgetSettings};
pub use bulkhead::{Bulkhead, BulkheadSettings, Permit, Refused};
pub use cpu::{CpuGuard, CpuLoad, CpuSettings, CpuUse};
pub use ejection::{EjectionSettings, Ejector, Health, Probe};
pub use fairness::{ClientCall, Fairness};
pub use hedge::{Hedge, HedgeError, HedgeSettings};
pub use limit::{AdaptiveLimit, LimitSettings, Outcome};
pub use rate::{KeyedRateLimit, RateLimit, RateSettings, RateStore, Taken};
pub use retry::{Attempts, Permission, RetryPolicy};
pub use throttle::{Throttle, ThrottleSettings};
pub use verdict::{Origin, Verdict};
