//! The suite against a real server.

use std::sync::Arc;

use antiphon_rates_redis::{RedisRates, Settings};
use antiphon_resilience::RateStore;
use antiphon_testing::conformance::rate_store::RateStoreHarness;

use crate::common::{ask, settings};

/// A part of the server with a prefix of its own.
struct Redis(Settings);

impl RateStoreHarness for Redis {
    async fn start() -> Self {
        Self(settings())
    }

    fn instance(&self) -> Arc<dyn RateStore> {
        Arc::new(RedisRates::start(&self.0).expect("settings that work"))
    }

    async fn remembers(&self, key: &[u8]) -> bool {
        let name = [format!("{}:rate:", self.0.prefix).as_bytes(), key].concat();
        ask(&self.0.url, redis::cmd("EXISTS").arg(name)).await
    }
}

antiphon_testing::rate_store_conformance!(Redis);
