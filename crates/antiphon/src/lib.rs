//! The facade: what a user depends on.

#[doc(hidden)]
#[path = "codegen.rs"]
pub mod __codegen;
mod error;
mod launch;
mod lifecycle;

pub use error::{Error, Result};
pub use launch::launch;
