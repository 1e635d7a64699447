//! The rules of the port, one by one.

use std::sync::Arc;
use std::time::Duration;

use antiphon_cache::{Age, Found, Lease, Listener, Record, SharedLevel};
use antiphon_cache_redis::RedisLevel;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::common::{connected, settings, until};

fn record(value: Option<&'static str>, fresh_ms: u64, stale_ms: u64) -> Record {
    let value = value.map(|text| Bytes::from_static(text.as_bytes()));
    let (fresh, stale) = (Duration::from_millis(fresh_ms), Duration::from_millis(stale_ms));
    Record { value, fresh, stale }
}

async fn read(level: &RedisLevel, key: &str) -> Found {
    level.read("stock", key).await.expect("an answer")
}

async fn fill(level: &RedisLevel, key: &str, lease: &Lease, record: Record) -> bool {
    level.fill("stock", key, lease, record).await.expect("an answer")
}

async fn invalidate(level: &RedisLevel, keys: &[&str]) {
    let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
    level.invalidate("stock", &keys).await.expect("an answer");
}

#[tokio::test]
async fn what_is_stored_is_read_with_its_age() {
    let level = connected(&settings()).await;
    let missing = read(&level, "k").await;
    assert_eq!(missing.stored, None);
    assert!(fill(&level, "k", &missing.lease, record(Some("value"), 60_000, 5_000)).await);
    let found = read(&level, "k").await;
    assert_eq!(found.lease, missing.lease, "the lease stays the key's");
    let Some((Some(value), Age::Fresh(left))) = found.stored else { panic!("{found:?}") };
    assert_eq!(&value[..], b"value");
    assert!(left <= Duration::from_secs(60) && left > Duration::from_secs(30), "{left:?}");
    assert!(fill(&level, "k", &found.lease, record(Some("old"), 0, 60_000)).await);
    let old = read(&level, "k").await;
    assert!(matches!(old.stored, Some((Some(_), Age::Stale(_)))), "{old:?}");
    assert!(fill(&level, "k", &old.lease, record(None, 60_000, 0)).await);
    let absent = read(&level, "k").await;
    assert!(matches!(absent.stored, Some((None, Age::Fresh(_)))), "{absent:?}");
}

#[tokio::test]
async fn values_of_any_bytes_come_back() {
    let level = connected(&settings()).await;
    let lease = read(&level, "odd key: {x}\n\u{1f600}").await.lease;
    let value = Bytes::from((0..=255).cycle().take(70_000).collect::<Vec<u8>>());
    let stored = Record { value: Some(value.clone()), ..record(None, 5_000, 0) };
    assert!(fill(&level, "odd key: {x}\n\u{1f600}", &lease, stored).await);
    let found = read(&level, "odd key: {x}\n\u{1f600}").await;
    assert!(matches!(found.stored, Some((Some(bytes), _)) if bytes == value));
}

#[tokio::test]
async fn a_lease_ends_with_the_invalidation() {
    let (first, second) = (connected(&settings()).await, connected(&settings()).await);
    let before = read(&first, "k").await.lease;
    invalidate(&first, &["k"]).await;
    assert!(!fill(&first, "k", &before, record(Some("old"), 5_000, 0)).await);
    let after = read(&first, "k").await;
    assert_eq!(after.stored, None);
    assert!(!fill(&first, "k", &before, record(Some("old"), 5_000, 0)).await, "still not");
    assert!(fill(&first, "k", &after.lease, record(Some("new"), 5_000, 0)).await);
    assert!(!fill(&first, "k", &before, record(Some("old"), 5_000, 0)).await, "nor over a new one");
    assert_eq!(read(&second, "k").await.stored, None, "another prefix is another level");
}

#[tokio::test]
async fn caches_of_other_names_are_apart() {
    let level = connected(&settings()).await;
    let stock = read(&level, "k").await.lease;
    let prices = level.read("prices", "k").await.expect("an answer").lease;
    assert!(fill(&level, "k", &stock, record(Some("1"), 5_000, 0)).await);
    level.invalidate("prices", &["k".to_owned()]).await.expect("an answer");
    assert!(read(&level, "k").await.stored.is_some());
    let filled = level.fill("prices", "k", &prices, record(Some("2"), 5_000, 0)).await;
    assert!(!filled.expect("an answer"));
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Listener for Heard {
    fn changed(&self, key: &str) {
        self.0.lock().push(key.to_owned());
    }

    fn missed(&self) {
        self.0.lock().push("missed".to_owned());
    }
}

#[tokio::test]
async fn others_hear_of_an_invalidation_and_nobody_of_its_own() {
    let settings = settings();
    let heard = [Arc::new(Heard::default()), Arc::new(Heard::default())];
    let mut levels = Vec::new();
    for heard in &heard {
        let level = connected(&settings).await;
        let listener: Arc<dyn Listener> = Arc::<Heard>::clone(heard);
        level.listen("stock", Arc::downgrade(&listener));
        levels.push(level);
    }
    invalidate(&levels[0], &["a", "b"]).await;
    until("the second hears of it", || heard[1].0.lock().len() == 2).await;
    assert_eq!(*heard[1].0.lock(), ["a", "b"]);
    invalidate(&levels[1], &["c"]).await;
    until("the first hears of it", || !heard[0].0.lock().is_empty()).await;
    assert_eq!(*heard[0].0.lock(), ["c"]);
    assert_eq!(heard[1].0.lock().len(), 2);
}

#[tokio::test]
async fn who_begins_to_listen_without_a_connection_is_told_that_it_missed_something() {
    let heard = Arc::new(Heard::default());
    let level = RedisLevel::start(&settings()).expect("settings that work");
    let listener: Arc<dyn Listener> = Arc::<Heard>::clone(&heard);
    level.listen("stock", Arc::downgrade(&listener));
    until("it is told", || *heard.0.lock() == ["missed"]).await;
}
