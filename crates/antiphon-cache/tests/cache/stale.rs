//! Old values: how long they are served, and when not.

use std::collections::BTreeSet;
use std::time::Duration;

use antiphon_cache::{Cache, CacheSettings};
use antiphon_config::HumanDuration;
use antiphon_core::Status;
use tokio::time::Instant;

use crate::common::{Loads, cache, figure, strict};

const MINUTE: Duration = Duration::from_secs(60);
/// A tenth more: the end of the longest minute.
const LONG_MINUTE: Duration = Duration::from_secs(66);

async fn get(cache: &Cache<String, u32>, loads: &Loads) -> u32 {
    *cache.get("k", loads.number()).await.expect("an answer").expect("a value")
}

async fn get_from_failing(cache: &Cache<String, u32>, loads: &Loads) -> Result<u32, Status> {
    let loads = loads.clone();
    let load = move || async move {
        loads.next();
        Err(Status::unavailable("the database is away"))
    };
    Ok(*cache.get("k", load).await?.expect("a value"))
}

#[tokio::test(start_paused = true)]
async fn values_are_fresh_for_their_time_give_or_take_a_tenth() {
    let (cache, _) = cache(strict());
    let loads = Loads::default();
    for key in 0..100 {
        cache.get(&key.to_string(), loads.number()).await.expect("it loads");
    }
    let began = Instant::now();
    let mut ends = BTreeSet::new();
    while began.elapsed() < LONG_MINUTE {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let known = loads.count();
        for key in 0..100 {
            if let Ok(Some(number)) = cache.get(&key.to_string(), loads.number()).await
                && *number > known
            {
                ends.insert(began.elapsed().as_secs());
            }
        }
    }
    assert!(loads.count() >= 200, "each was loaded again by the end: {}", loads.count());
    let (first, last) = (ends.first().expect("some"), ends.last().expect("some"));
    // The hundred loads of the beginning took a second.
    assert!(*first >= 53 && *last <= 68, "{ends:?}");
    assert!(ends.len() >= 8, "they end apart: {ends:?}");
}

#[tokio::test(start_paused = true)]
async fn an_old_value_is_served_at_once_while_one_load_makes_a_new_one() {
    let window = HumanDuration::from_secs(20);
    let (cache, telemetry) = cache(CacheSettings { stale_while_revalidate: window, ..strict() });
    let loads = Loads::default();
    assert_eq!(get(&cache, &loads).await, 1);
    tokio::time::sleep(LONG_MINUTE).await;
    let began = Instant::now();
    for _ in 0..1_000 {
        assert_eq!(get(&cache, &loads).await, 1);
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "nobody waited");
    tokio::time::sleep(Duration::from_millis(11)).await;
    assert_eq!(get(&cache, &loads).await, 2);
    assert_eq!(loads.count(), 2);
    assert_eq!(figure(&telemetry, "cache_requests_total", "stale"), 1_000);
    tokio::time::sleep(LONG_MINUTE + window.0).await;
    assert_eq!(get(&cache, &loads).await, 3, "it is too old to be served");
}

#[tokio::test(start_paused = true)]
async fn when_loading_fails_an_old_value_is_served_and_the_source_is_left_alone_for_a_while() {
    let window = HumanDuration(2 * MINUTE);
    let (cache, _) = cache(CacheSettings { stale_if_error: window, ..strict() });
    let loads = Loads::default();
    assert_eq!(get(&cache, &loads).await, 1);
    tokio::time::sleep(LONG_MINUTE).await;
    for _ in 0..100 {
        assert_eq!(get_from_failing(&cache, &loads).await.expect("the old one"), 1);
    }
    assert_eq!(loads.count(), 2, "one attempt");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(get_from_failing(&cache, &loads).await.expect("the old one"), 1);
    assert_eq!(loads.count(), 3, "one more after the pause");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(get(&cache, &loads).await, 4, "the source is back");
    tokio::time::sleep(LONG_MINUTE + window.0).await;
    assert!(get_from_failing(&cache, &loads).await.is_err(), "it is too old to be served");
}

#[tokio::test(start_paused = true)]
async fn a_failing_renewal_in_the_background_is_not_repeated_at_the_rate_of_the_readers() {
    let window = HumanDuration::from_secs(20);
    let (cache, _) = cache(CacheSettings { stale_while_revalidate: window, ..strict() });
    let loads = Loads::default();
    assert_eq!(get(&cache, &loads).await, 1);
    tokio::time::sleep(LONG_MINUTE).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(get_from_failing(&cache, &loads).await.expect("the old one"), 1);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!((3..=5).contains(&loads.count()), "{} loads", loads.count());
}

#[tokio::test(start_paused = true)]
async fn nothing_old_is_served_after_an_invalidation() {
    let (cache, _) = cache(CacheSettings::default());
    let loads = Loads::default();
    assert_eq!(get(&cache, &loads).await, 1);
    cache.invalidate("k").await.expect("it is forgotten");
    assert!(get_from_failing(&cache, &loads).await.is_err());
    assert_eq!(get(&cache, &loads).await, 3);
}
