//! Rate limits that instances share, on Redis.
//!
//! A key is one number with a time to live, and one script decides about it, by the server's clock.
//! `README.md` has the whole mapping.

mod connection;
mod error;
mod script;
mod settings;
mod store;

pub use error::StartError;
pub use settings::Settings;
pub use store::RedisRates;
