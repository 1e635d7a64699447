//! Invalidations: nothing that was loaded before one is kept after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use antiphon_cache::Cache;
use antiphon_core::Status;
use tokio::task::JoinSet;

use crate::common::{Loads, cache, figure, strict};

#[tokio::test(start_paused = true)]
async fn a_load_that_began_before_an_invalidation_does_not_put_the_old_value_back() {
    let (cache, _) = cache(strict());
    let loads = Loads::default();
    let slow = {
        let (cache, loads) = (cache.clone(), loads.clone());
        let load = move || async move {
            let number = loads.next();
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok(Some(number))
        };
        tokio::spawn(async move { cache.get("k", load).await })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    cache.invalidate("k").await.expect("it is forgotten");
    // Who comes after the invalidation does not wait for the old load.
    assert_eq!(cache.get("k", loads.number()).await.expect("it loads").as_deref(), Some(&2));
    let old = slow.await.expect("it ends").expect("it loads");
    assert_eq!(old.as_deref(), Some(&1), "who asked before it may get the old value");
    assert_eq!(cache.get("k", loads.number()).await.expect("it is there").as_deref(), Some(&2));
    assert_eq!(loads.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_same_with_nobody_asking_in_between() {
    let (cache, _) = cache(strict());
    let loads = Loads::default();
    let slow = tokio::spawn({
        let (cache, loads) = (cache.clone(), loads.clone());
        async move { cache.get("k", loads.number()).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    cache.invalidate("k").await.expect("it is forgotten");
    slow.await.expect("it ends").expect("it loads");
    assert_eq!(cache.get("k", loads.number()).await.expect("it loads").as_deref(), Some(&2));
}

#[tokio::test(start_paused = true)]
async fn forgetting_everything_counts_for_loads_in_progress_too() {
    let (cache, _) = cache(strict());
    let loads = Loads::default();
    cache.get("other", loads.number()).await.expect("it loads");
    let slow = tokio::spawn({
        let (cache, loads) = (cache.clone(), loads.clone());
        async move { cache.get("k", loads.number()).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    cache.forget_all();
    slow.await.expect("it ends").expect("it loads");
    assert_eq!(cache.get("k", loads.number()).await.expect("it loads").as_deref(), Some(&3));
    assert_eq!(cache.get("other", loads.number()).await.expect("it loads").as_deref(), Some(&4));
}

#[tokio::test(start_paused = true)]
async fn several_keys_are_invalidated_at_once() {
    let (cache, telemetry) = cache(strict());
    let loads = Loads::default();
    for key in ["a", "b", "c"] {
        cache.get(key, loads.number()).await.expect("it loads");
    }
    cache.invalidate_many(["a", "b"]).await.expect("they are forgotten");
    for (key, number) in [("a", 4), ("b", 5), ("c", 3)] {
        assert_eq!(
            cache.get(key, loads.number()).await.expect("a value").as_deref(),
            Some(&number)
        );
    }
    assert_eq!(figure(&telemetry, "cache_invalidations_total", ""), 2);
}

/// A source whose value is a version, and what is known of it.
#[derive(Debug, Default)]
pub(crate) struct Versions {
    newest: AtomicU32,
    /// The newest whose invalidation is done.
    settled: AtomicU32,
    ended: AtomicBool,
    reads: AtomicU32,
}

impl Versions {
    /// Writes and reads at the same time, through these caches.
    pub(crate) async fn check(caches: &[Cache<String, u32>]) {
        let versions = Arc::new(Self::default());
        let mut readers = JoinSet::new();
        for cache in caches.iter().cycle().take(6) {
            readers.spawn(Arc::clone(&versions).read(cache.clone()));
        }
        tokio::select! {
            () = versions.write(caches) => {}
            // It reads until writing ends, unless it found something wrong.
            Some(ended) = readers.join_next() => ended.expect("nothing old is read"),
        }
        readers.join_all().await;
    }

    /// Writes versions and invalidates each before the next, by turns through these caches, until they
    /// were read often enough.
    async fn write(&self, caches: &[Cache<String, u32>]) {
        for (version, cache) in (1..).zip(caches.iter().cycle()) {
            self.newest.store(version, SeqCst);
            cache.invalidate("k").await.expect("it is forgotten");
            self.settled.store(version, SeqCst);
            tokio::task::yield_now().await;
            if version >= 3_000 && self.reads.load(SeqCst) >= 5_000 {
                break;
            }
        }
        self.ended.store(true, SeqCst);
    }

    /// Reads until writing ends. Each value must be at least as new as what was invalidated before
    /// the question.
    async fn read(self: Arc<Self>, cache: Cache<String, u32>) {
        while !self.ended.load(SeqCst) {
            let least = self.settled.load(SeqCst);
            let source = Arc::clone(&self);
            let load = move || async move {
                let version = source.newest.load(SeqCst);
                // The load has an old version in its hands for a while.
                for _ in 0..version % 7 {
                    tokio::task::yield_now().await;
                }
                Ok::<_, Status>(Some(version))
            };
            let version = *cache.get("k", load).await.expect("an answer").expect("a value");
            assert!(version >= least, "version {version} after the invalidation of {least}");
            if self.reads.fetch_add(1, SeqCst).is_multiple_of(16) {
                tokio::task::yield_now().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_an_invalidation_nobody_reads_what_was_before_it() {
    let (cache, _) = cache(strict());
    Versions::check(&[cache]).await;
}
