//! The facade: what a user depends on.

mod error;
mod launch;
mod lifecycle;

pub use error::{Error, Result};
pub use launch::launch;
