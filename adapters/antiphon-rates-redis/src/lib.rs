//! Rate limits that instances share, on Redis.
//!
//! A key is one number with a time to live, and one script decides about it, by the server's clock.
//! `README.md` has the whole mapping.

mod script;
mod settings;
mod store;

pub use antiphon_redis_client::StartError;
pub use settings::Settings;
pub use store::RedisRates;
