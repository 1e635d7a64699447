//! What the tests share: levels with a prefix of their own, caches, and waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use antiphon_cache::{Cache, CacheSettings, Json, SharedLevel};
use antiphon_cache_redis::{RedisLevel, Settings};
use antiphon_config::HumanDuration;
use antiphon_core::{BoxFuture, Status};
use antiphon_telemetry::Telemetry;
use antiphon_testing::services::Service;
use tokio::time::timeout;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server of the tests, with a prefix that nobody else has.
pub(crate) fn settings() -> Settings {
    at(&Service::Redis.url())
}

pub(crate) fn at(url: &str) -> Settings {
    let prefix = format!("test-{:016x}", fastrand::u64(..));
    // What a test leaves behind is gone soon.
    Settings { prefix, lease: HumanDuration::from_secs(10), ..Settings::new(url) }
}

/// A level that has its connection: one process's.
pub(crate) async fn connected(settings: &Settings) -> Arc<RedisLevel> {
    let level = Arc::new(RedisLevel::start(settings).expect("settings that work"));
    until("it connects; start the server with `cargo xtask services up redis`", || {
        level.is_connected()
    })
    .await;
    level
}

/// A cache over a level.
pub(crate) fn cache(level: &Arc<RedisLevel>) -> Cache<String, u32> {
    let settings = CacheSettings {
        ttl: HumanDuration::from_secs(20),
        stale_while_revalidate: HumanDuration::from_secs(0),
        stale_if_error: HumanDuration::from_secs(0),
        // What other tests do to this machine must not look like a server that is away.
        shared_timeout: HumanDuration::from_secs(1),
        ..CacheSettings::default()
    };
    let level = Arc::<RedisLevel>::clone(level);
    let builder = Cache::builder("stock").settings(settings).shared(level, Json);
    builder.build(&Telemetry::new()).expect("a cache")
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

/// Waits until a value of the cache is at the server: storing it does not keep the caller waiting.
pub(crate) async fn stored(level: &RedisLevel, key: &str) {
    let waited = timeout(PATIENCE, async {
        while level.read("stock", key).await.expect("an answer").stored.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{key} is not stored");
}

/// Waits until a cache yields this value, which it does when it has heard of the last invalidation.
pub(crate) async fn read_until(cache: &Cache<String, u32>, key: &str, expected: u32) {
    let waited = timeout(PATIENCE, async {
        let load = move || async move { Ok::<_, Status>(Some(expected)) };
        while cache.get(key, load).await.expect("an answer").as_deref() != Some(&expected) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{key} stays old");
}

/// A source that yields how often it was asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loads(Arc<AtomicU32>);

type Loaded = BoxFuture<'static, Result<Option<u32>, Status>>;

impl Loads {
    pub(crate) fn number(&self) -> impl FnOnce() -> Loaded + Send + 'static {
        let loads = self.clone();
        move || Box::pin(async move { Ok(Some(loads.0.fetch_add(1, SeqCst) + 1)) })
    }
}

pub(crate) async fn get(cache: &Cache<String, u32>, key: &str, loads: &Loads) -> u32 {
    let value = timeout(PATIENCE, cache.get(key, loads.number())).await.expect("an answer in time");
    *value.expect("an answer").expect("a value")
}
