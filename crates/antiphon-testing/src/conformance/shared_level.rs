//! What every shared level of the cache must do: one case per rule of `antiphon_cache::SharedLevel`.
//!
//! An adapter implements [`SharedLevelHarness`] and adds one line,
//! [`shared_level_conformance!`](crate::shared_level_conformance).

use std::sync::Arc;
use std::time::Duration;

use antiphon_cache::{Age, Found, Lease, Listener, Record, SharedLevel};
use bytes::Bytes;
use parking_lot::Mutex;

/// How long a case waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes a test of every case: `shared_level_conformance!(Harness)`. The test crate needs tokio with
/// its macros.
#[macro_export]
macro_rules! shared_level_conformance {
    ($harness:ty) => {
        $crate::shared_level_conformance!(@cases $harness, [
            what_is_stored_is_found_with_its_age,
            values_and_keys_of_any_bytes_come_back,
            a_lease_ends_with_the_invalidation,
            a_value_ends_with_its_time,
            caches_of_other_names_are_apart,
            others_hear_of_an_invalidation_and_nobody_of_its_own,
            who_begins_to_listen_is_told_what_it_may_have_missed,
            who_begins_to_listen_late_is_told_that_it_hears,
        ]);
    };
    (@cases $harness:ty, [$($case:ident),* $(,)?]) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                use $crate::conformance::shared_level::{self, SharedLevelHarness};
                let harness = <$harness as SharedLevelHarness>::start().await;
                shared_level::$case(&harness).await;
            }
        )*
    };
}

/// Makes shared levels that nobody else uses.
pub trait SharedLevelHarness: Send + Sync {
    /// An empty level.
    fn start() -> impl Future<Output = Self> + Send;

    /// One more process's way to it, which may not be connected yet.
    fn process(&self) -> Arc<dyn SharedLevel>;
}

async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "this does not happen: {what}");
}

async fn process(harness: &impl SharedLevelHarness) -> Arc<dyn SharedLevel> {
    let level = harness.process();
    until("the level answers", async || level.read("ready", "k").await.is_ok()).await;
    level
}

fn record(value: Option<&'static str>, fresh_ms: u64, stale_ms: u64) -> Record {
    let value = value.map(|text| Bytes::from_static(text.as_bytes()));
    let (fresh, stale) = (Duration::from_millis(fresh_ms), Duration::from_millis(stale_ms));
    Record { value, fresh, stale }
}

async fn read(level: &Arc<dyn SharedLevel>, key: &str) -> Found {
    level.read("stock", key).await.expect("an answer")
}

async fn fill(level: &Arc<dyn SharedLevel>, key: &str, lease: &Lease, record: Record) -> bool {
    level.fill("stock", key, lease, record).await.expect("an answer")
}

async fn invalidate(level: &Arc<dyn SharedLevel>, keys: &[&str]) {
    let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
    level.invalidate("stock", &keys).await.expect("an answer");
}

/// A value, an old value, and the knowledge that there is none.
pub async fn what_is_stored_is_found_with_its_age(harness: &impl SharedLevelHarness) {
    let (level, other) = (process(harness).await, process(harness).await);
    let missing = read(&level, "k").await;
    assert_eq!(missing.stored, None);
    assert!(fill(&level, "k", &missing.lease, record(Some("value"), 60_000, 5_000)).await);
    let found = read(&other, "k").await;
    assert_eq!(found.lease, missing.lease, "the lease stays the key's");
    let Some((Some(value), Age::Fresh(left))) = &found.stored else {
        unreachable!("it is there and fresh: {found:?}")
    };
    assert_eq!(&value[..], b"value");
    assert!(*left <= Duration::from_secs(60) && *left > Duration::from_secs(20), "{left:?}");
    assert!(fill(&level, "k", &found.lease, record(Some("old"), 0, 60_000)).await);
    let old = read(&other, "k").await;
    assert!(matches!(old.stored, Some((Some(_), Age::Stale(_)))), "{old:?}");
    assert!(fill(&other, "k", &old.lease, record(None, 60_000, 0)).await);
    let absent = read(&level, "k").await;
    assert!(matches!(absent.stored, Some((None, Age::Fresh(_)))), "{absent:?}");
}

/// Nothing is text, and nothing is a pattern.
pub async fn values_and_keys_of_any_bytes_come_back(harness: &impl SharedLevelHarness) {
    let level = process(harness).await;
    let odd = "odd key: {x}*\n\u{1f600}";
    let lease = read(&level, odd).await.lease;
    let value = Bytes::from((0..=255).cycle().take(70_000).collect::<Vec<u8>>());
    let stored = Record { value: Some(value.clone()), ..record(None, 60_000, 0) };
    assert!(fill(&level, odd, &lease, stored).await);
    let found = read(&level, odd).await;
    assert!(matches!(found.stored, Some((Some(bytes), _)) if bytes == value));
    assert_eq!(read(&level, "odd key: {x}*").await.stored, None);
}

/// Rule 1, also when the key is loaded and stored anew meanwhile.
pub async fn a_lease_ends_with_the_invalidation(harness: &impl SharedLevelHarness) {
    let (level, other) = (process(harness).await, process(harness).await);
    let before = read(&level, "k").await.lease;
    invalidate(&other, &["k"]).await;
    assert!(!fill(&level, "k", &before, record(Some("old"), 60_000, 0)).await);
    let after = read(&level, "k").await;
    assert_eq!(after.stored, None);
    assert!(!fill(&level, "k", &before, record(Some("old"), 60_000, 0)).await, "still not");
    assert!(fill(&other, "k", &after.lease, record(Some("new"), 60_000, 0)).await);
    assert!(
        !fill(&level, "k", &before, record(Some("old"), 60_000, 0)).await,
        "nor over a new one"
    );
    let found = read(&level, "k").await;
    assert!(matches!(found.stored, Some((Some(value), _)) if &value[..] == b"new"));
}

/// What is not even stale any more is not there.
pub async fn a_value_ends_with_its_time(harness: &impl SharedLevelHarness) {
    let level = process(harness).await;
    let lease = read(&level, "k").await.lease;
    assert!(fill(&level, "k", &lease, record(Some("value"), 20, 20)).await);
    until("it ends", async || read(&level, "k").await.stored.is_none()).await;
}

/// A name is a cache.
pub async fn caches_of_other_names_are_apart(harness: &impl SharedLevelHarness) {
    let level = process(harness).await;
    let stock = read(&level, "k").await.lease;
    let prices = level.read("prices", "k").await.expect("an answer").lease;
    assert!(fill(&level, "k", &stock, record(Some("1"), 60_000, 0)).await);
    level.invalidate("prices", &["k".to_owned()]).await.expect("an answer");
    assert!(read(&level, "k").await.stored.is_some());
    let filled = level.fill("prices", "k", &prices, record(Some("2"), 60_000, 0)).await;
    assert!(!filled.expect("an answer"));
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Listener for Heard {
    fn changed(&self, key: &str) {
        self.0.lock().push(key.to_owned());
    }

    fn deaf(&self) {
        self.0.lock().push("deaf".to_owned());
    }

    fn missed(&self) {
        self.0.lock().push("missed".to_owned());
    }
}

/// Rule 3: each change is told to the others.
pub async fn others_hear_of_an_invalidation_and_nobody_of_its_own(
    harness: &impl SharedLevelHarness,
) {
    let heard = [Arc::new(Heard::default()), Arc::new(Heard::default())];
    let mut levels = Vec::new();
    for heard in &heard {
        let level = process(harness).await;
        let listener: Arc<dyn Listener> = Arc::<Heard>::clone(heard);
        level.listen("stock", Arc::downgrade(&listener));
        levels.push(level);
    }
    let keys = |heard: &Heard| -> Vec<String> {
        heard.0.lock().iter().filter(|key| *key != "missed").cloned().collect()
    };
    invalidate(&levels[0], &["a", "b"]).await;
    until("the second hears of it", async || keys(&heard[1]).len() >= 2).await;
    invalidate(&levels[1], &["c"]).await;
    until("the first hears of it", async || !keys(&heard[0]).is_empty()).await;
    assert_eq!(keys(&heard[0]), ["c"]);
    assert_eq!(keys(&heard[1]), ["a", "b"]);
}

/// Rule 3: who was not connected may have missed something.
pub async fn who_begins_to_listen_is_told_what_it_may_have_missed(
    harness: &impl SharedLevelHarness,
) {
    let heard = Arc::new(Heard::default());
    let listener: Arc<dyn Listener> = Arc::<Heard>::clone(&heard);
    let level = harness.process();
    level.listen("stock", Arc::downgrade(&listener));
    until("it is told", async || *heard.0.lock() == ["missed"]).await;
}

/// Rule 3: also where there is a connection already.
pub async fn who_begins_to_listen_late_is_told_that_it_hears(harness: &impl SharedLevelHarness) {
    let level = process(harness).await;
    let heard = Arc::new(Heard::default());
    let listener: Arc<dyn Listener> = Arc::<Heard>::clone(&heard);
    level.listen("stock", Arc::downgrade(&listener));
    until("it is told", async || *heard.0.lock() == ["missed"]).await;
}
