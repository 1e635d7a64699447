//! The shop under faults: real servers, real processes, and an audit as the judge.
//!
//! A [`run`] starts a database server and a broker of its own, puts a proxy in front of them for each
//! service, runs the shop's six services as processes, and lets customers order. A nemesis follows a
//! [`plan`] that a seed decides: it kills and pauses processes, restarts servers, cuts connections,
//! loses answers, fills disks, moves clocks. Then everything heals, the shop becomes quiet, and `shop
//! audit` says whether anything was lost or done twice. A run whose faults did not bite is void, and
//! that is a failure: the [`proof`] counts what the services noticed.

pub mod engine;
pub mod nemesis;
pub mod plan;
pub mod proof;
pub mod run;
pub mod shop;
pub mod web;

/// What goes wrong with the harness itself, or the verdict.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// See [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
