//! What the tests share: stores with a prefix of their own, and waiting.

use std::sync::Arc;
use std::time::Duration;

use antiphon_rates_redis::{RedisRates, Settings};
use antiphon_testing::services::Service;
use redis::{Cmd, FromRedisValue};
use tokio::time::timeout;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server of the tests, with a prefix that nobody else has.
pub(crate) fn settings() -> Settings {
    at(&Service::Redis.url())
}

pub(crate) fn at(url: &str) -> Settings {
    let prefix = format!("test-{:016x}", fastrand::u64(..));
    Settings { prefix, ..Settings::new(url) }
}

/// A store that has its connection: one process's.
pub(crate) async fn connected(settings: &Settings) -> Arc<RedisRates> {
    let store = Arc::new(RedisRates::start(settings).expect("settings that work"));
    let connected = timeout(PATIENCE, store.connected()).await;
    connected.expect("it connects; start the server with `cargo xtask services up redis`");
    store
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "this does not happen: {what}");
}

/// Asks the server itself.
pub(crate) async fn ask<T: FromRedisValue>(url: &str, command: &Cmd) -> T {
    let client = redis::Client::open(url).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("it connects");
    command.query_async(&mut connection).await.expect("an answer")
}
