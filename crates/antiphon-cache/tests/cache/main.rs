//! The cache as its users see it: loading, old values, what does not exist, invalidations, two levels.

mod absent;
mod common;
mod invalidation;
mod level;
mod loading;
mod shared;
mod soon;
mod stale;
