//! The cache's shared level on Redis.
//!
//! A key is one hash: its lease, and what is stored under it. Removing the hash ends both, so nothing
//! that was loaded before an invalidation is stored after it. Invalidations are published to the other
//! processes over the connection that reads go over. `README.md` has the whole mapping.

mod level;
mod listeners;
mod scripts;
mod settings;

pub use antiphon_redis_client::StartError;
pub use level::RedisLevel;
pub use settings::Settings;
