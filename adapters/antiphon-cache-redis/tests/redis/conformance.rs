//! The suite against a real server.

use std::sync::Arc;

use antiphon_cache::SharedLevel;
use antiphon_cache_redis::{RedisLevel, Settings};
use antiphon_testing::conformance::shared_level::SharedLevelHarness;

use crate::common::settings;

/// A part of the server with a prefix of its own.
struct Redis(Settings);

impl SharedLevelHarness for Redis {
    async fn start() -> Self {
        Self(settings())
    }

    fn process(&self) -> Arc<dyn SharedLevel> {
        Arc::new(RedisLevel::start(&self.0).expect("settings that work"))
    }
}

antiphon_testing::shared_level_conformance!(Redis);
