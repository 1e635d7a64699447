//! What does not exist: remembered for a while, and kept from the source by the filter.

use std::time::Duration;

use antiphon_cache::{Cache, CacheSettings};
use antiphon_core::Status;

use crate::common::{Loads, cache, figure, strict};

async fn look_up(cache: &Cache<String, u32>, key: &str, loads: &Loads) -> Option<u32> {
    let loads = loads.clone();
    let absent = move || async move {
        loads.next();
        Ok::<_, Status>(None)
    };
    cache.get(key, absent).await.expect("an answer").map(|value| *value)
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_made_up_keys_hardly_reach_the_source() {
    let settings = CacheSettings { filter_keys: 10_000, ..strict() };
    let (cache, telemetry) = cache(settings);
    let filter = cache.filter().expect("a filter");
    let rebuild = filter.rebuild();
    (0..10_000).for_each(|number| rebuild.add(&format!("sku-{number}")));
    assert!(rebuild.finish());
    let loads = Loads::default();
    for number in 0..100_000 {
        assert_eq!(look_up(&cache, &format!("made-up-{number}"), &loads).await, None);
    }
    let count = loads.count();
    assert!(count <= 300, "{count} of 100,000 lookups reached the source, where 100 should");
    let filtered = figure(&telemetry, "cache_requests_total", "filtered");
    assert_eq!(filtered, 100_000 - u64::from(count));
    for number in (0..10_000).step_by(100) {
        let before = loads.count();
        look_up(&cache, &format!("sku-{number}"), &loads).await;
        assert_eq!(loads.count(), before + 1, "an existing key must reach the source");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_lookups_of_few_absent_keys_reach_the_source_once_each() {
    let (cache, telemetry) = cache(strict());
    let loads = Loads::default();
    for number in 0..100_000 {
        assert_eq!(look_up(&cache, &format!("absent-{}", number % 500), &loads).await, None);
    }
    assert_eq!(loads.count(), 500);
    assert_eq!(figure(&telemetry, "cache_requests_total", "negative"), 99_500);
    tokio::time::sleep(Duration::from_secs(11)).await;
    look_up(&cache, "absent-1", &loads).await;
    assert_eq!(loads.count(), 501, "it is not remembered for ever");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_comes_to_exist_is_found_after_its_invalidation() {
    let (cache, _) = cache(CacheSettings { filter_keys: 100, ..strict() });
    let filter = cache.filter().expect("a filter");
    assert!(filter.rebuild().finish(), "nothing exists");
    let loads = Loads::default();
    assert_eq!(look_up(&cache, "new", &loads).await, None);
    assert_eq!(loads.count(), 0);
    cache.invalidate("new").await.expect("it is forgotten");
    let value = cache.get("new", loads.number()).await.expect("an answer");
    assert_eq!(value.as_deref(), Some(&1));
}

#[tokio::test(start_paused = true)]
async fn a_remembered_absence_ends_with_the_invalidation() {
    let (cache, _) = cache(strict());
    let loads = Loads::default();
    assert_eq!(look_up(&cache, "new", &loads).await, None);
    cache.invalidate("new").await.expect("it is forgotten");
    assert_eq!(cache.get("new", loads.number()).await.expect("an answer").as_deref(), Some(&2));
}

#[tokio::test(start_paused = true)]
async fn when_changes_may_have_been_missed_every_key_passes_until_the_filter_is_built_anew() {
    let (cache, _) = cache(CacheSettings { filter_keys: 100, ..strict() });
    let filter = cache.filter().expect("a filter");
    assert!(filter.rebuild().finish());
    let loads = Loads::default();
    look_up(&cache, "a", &loads).await;
    assert_eq!(loads.count(), 0);
    cache.forget_all();
    look_up(&cache, "a", &loads).await;
    assert_eq!(loads.count(), 1);
    filter.due().await;
    assert!(filter.rebuild().finish());
    look_up(&cache, "b", &loads).await;
    assert_eq!(loads.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_negative_time_nothing_is_remembered() {
    let settings = CacheSettings { negative_ttl: crate::common::NEVER, ..strict() };
    let (cache, _) = cache(settings);
    let loads = Loads::default();
    look_up(&cache, "a", &loads).await;
    look_up(&cache, "a", &loads).await;
    assert_eq!((loads.count(), cache.entry_count()), (2, 0));
}
