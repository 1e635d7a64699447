//! The engine: what a consumer does with deliveries.
//!
//! Decisions are pure ([`Executor`](executor::Executor): who runs next; [`Ladder`](ladder::Ladder):
//! what a failure means; [`AwayKeys`](away::AwayKeys): which keys the broker holds), and one async
//! [`Driver`](driver::Driver) per subscription acts on them.

pub(crate) mod away;
pub(crate) mod credits;
pub(crate) mod driver;
pub(crate) mod executor;
pub(crate) mod held;
pub(crate) mod ladder;
pub(crate) mod parking;
pub(crate) mod pipeline;
