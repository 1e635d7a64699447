//! What the tests share: levels with a prefix of their own, caches, and waiting for what they do.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

use antiphon_cache::{Cache, CacheSettings, Found, Json, Lease, Listener, Record, SharedLevel};
use antiphon_cache_redis::{RedisLevel, Settings};
use antiphon_config::HumanDuration;
use antiphon_core::{BoxError, BoxFuture, Status};
use antiphon_telemetry::Telemetry;
use antiphon_testing::services::Service;
use parking_lot::Mutex;
use tokio::sync::watch;
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

/// The level of one process, which tells what goes through it.
pub(crate) struct Level {
    // Dropped first: whoever sees an end of the events below knows that it is gone.
    redis: RedisLevel,
    /// The keys that were stored.
    stored: watch::Sender<BTreeSet<String>>,
    /// How much was heard of other processes.
    heard: watch::Sender<u64>,
    /// What listens to the level in the name of its caches.
    ears: Mutex<Vec<Arc<Ear>>>,
}

impl Level {
    /// A level that has its connection.
    async fn start(settings: &Settings) -> Arc<Self> {
        let redis = RedisLevel::start(settings).expect("settings that work");
        let level = Arc::new(Self {
            redis,
            stored: watch::Sender::default(),
            heard: watch::Sender::default(),
            ears: Mutex::default(),
        });
        level.connected().await;
        level
    }

    pub(crate) async fn connected(&self) {
        let what = "it connects; start the server with `cargo xtask services up redis`";
        within(what, self.redis.connected()).await;
    }

    pub(crate) async fn disconnected(&self) {
        within("the connection is given up", self.redis.disconnected()).await;
    }

    /// Waits until a value of the cache is at the server: storing it does not keep the caller waiting.
    pub(crate) async fn stored(&self, key: &str) {
        let mut stored = self.stored.subscribe();
        let is_stored = stored.wait_for(|keys| keys.contains(key));
        within(&format!("{key} is stored"), is_stored).await.expect("the level is there");
    }

    /// Ends when the level is dropped.
    pub(crate) fn end(&self) -> impl Future<Output = ()> + use<> {
        let mut heard = self.heard.subscribe();
        async move {
            within("it is dropped", async { while heard.changed().await.is_ok() {} }).await;
        }
    }
}

impl SharedLevel for Level {
    fn read<'a>(&'a self, cache: &'a str, key: &'a str) -> BoxFuture<'a, Result<Found, BoxError>> {
        self.redis.read(cache, key)
    }

    fn fill<'a>(
        &'a self,
        cache: &'a str,
        key: &'a str,
        lease: &'a Lease,
        record: Record,
    ) -> BoxFuture<'a, Result<bool, BoxError>> {
        Box::pin(async move {
            let stored = self.redis.fill(cache, key, lease, record).await?;
            if stored {
                self.stored.send_modify(|keys| {
                    keys.insert(key.to_owned());
                });
            }
            Ok(stored)
        })
    }

    fn invalidate<'a>(
        &'a self,
        cache: &'a str,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<(), BoxError>> {
        self.redis.invalidate(cache, keys)
    }

    fn listen(&self, cache: &str, listener: Weak<dyn Listener>) {
        let ear = Arc::new(Ear { listener, heard: self.heard.clone() });
        let weak: Weak<dyn Listener> = Arc::<Ear>::downgrade(&ear);
        self.ears.lock().push(ear);
        self.redis.listen(cache, weak);
    }
}

/// Passes on what a listener is told, and counts it afterwards.
struct Ear {
    listener: Weak<dyn Listener>,
    heard: watch::Sender<u64>,
}

impl Ear {
    fn tell(&self, tell: impl FnOnce(&dyn Listener)) {
        if let Some(listener) = self.listener.upgrade() {
            tell(&*listener);
        }
        self.heard.send_modify(|count| *count += 1);
    }
}

impl Listener for Ear {
    fn changed(&self, key: &str) {
        self.tell(|listener| listener.changed(key));
    }

    fn deaf(&self) {
        self.tell(|listener| listener.deaf());
    }

    fn missed(&self) {
        self.tell(|listener| listener.missed());
    }
}

/// A level that has its connection: one process's.
pub(crate) async fn connected(settings: &Settings) -> Arc<Level> {
    Level::start(settings).await
}

/// A cache over a level.
pub(crate) fn cache(level: &Arc<Level>) -> Cache<String, u32> {
    let settings = CacheSettings {
        ttl: HumanDuration::from_secs(20),
        stale_while_revalidate: HumanDuration::from_secs(0),
        stale_if_error: HumanDuration::from_secs(0),
        // What other tests do to this machine must not look like a server that is away.
        shared_timeout: HumanDuration::from_secs(1),
        ..CacheSettings::default()
    };
    let level = Arc::<Level>::clone(level);
    let builder = Cache::builder("stock").settings(settings).shared(level, Json);
    builder.build(&Telemetry::new()).expect("a cache")
}

/// Waits for what must happen.
async fn within<T>(what: &str, happens: impl Future<Output = T>) -> T {
    let happened = timeout(PATIENCE, happens).await;
    assert!(happened.is_ok(), "this does not happen: {what}");
    happened.expect("it happens")
}

/// Waits until a cache over a level yields this value, which it does when it has heard of the last
/// invalidation.
pub(crate) async fn read_until(
    level: &Level,
    cache: &Cache<String, u32>,
    key: &str,
    expected: u32,
) {
    let mut heard = level.heard.subscribe();
    let read = async {
        let load = move || async move { Ok::<_, Status>(Some(expected)) };
        while cache.get(key, load).await.expect("an answer").as_deref() != Some(&expected) {
            heard.changed().await.expect("the level is there");
        }
    };
    within(&format!("{key} becomes new"), read).await;
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
