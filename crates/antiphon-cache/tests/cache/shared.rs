//! Two levels: what processes share, and what happens when it is away.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use antiphon_cache::{Cache, CacheSettings, Json};
use antiphon_config::HumanDuration;
use antiphon_core::{Code, Retry, Status};
use antiphon_telemetry::Telemetry;
use tokio::time::Instant;

use crate::common::{Loads, figure, strict};
use crate::invalidation::Versions;
use crate::level::{Level, Mood, TOO_LONG, processes};

fn cache_on(level: &Arc<Level>, settings: CacheSettings) -> (Cache<String, u32>, Telemetry) {
    let telemetry = Telemetry::new();
    let level = Arc::<Level>::clone(level);
    let cache = Cache::builder("test").settings(settings).shared(level, Json).build(&telemetry);
    (cache.expect("a cache"), telemetry)
}

pub(crate) fn two(settings: CacheSettings) -> [(Cache<String, u32>, Telemetry, Arc<Level>); 2] {
    let ends = processes(2, 0);
    [0, 1].map(|process| {
        let (cache, telemetry) = cache_on(&ends[process], settings.clone());
        (cache, telemetry, Arc::clone(&ends[process]))
    })
}

pub(crate) async fn get(cache: &Cache<String, u32>, loads: &Loads) -> u32 {
    *cache.get("k", loads.number()).await.expect("an answer").expect("a value")
}

#[tokio::test(start_paused = true)]
async fn what_one_process_loaded_the_others_find_with_the_rest_of_its_time() {
    let [(first, ..), (second, telemetry, _)] = two(strict());
    let loads = Loads::default();
    assert_eq!(get(&first, &loads).await, 1);
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(get(&second, &loads).await, 1);
    assert_eq!(figure(&telemetry, "cache_shared_requests_total", "hit"), 1);
    tokio::time::sleep(Duration::from_secs(17)).await;
    assert_eq!(get(&second, &loads).await, 2, "its time did not begin anew");
}

#[tokio::test(start_paused = true)]
async fn that_there_is_none_is_shared_too() {
    let [(first, ..), (second, ..)] = two(strict());
    let none = || async { Ok::<Option<u32>, Status>(None) };
    assert!(first.get("k", none).await.expect("an answer").is_none());
    let loads = Loads::default();
    assert!(second.get("k", loads.number()).await.expect("an answer").is_none());
    assert_eq!(loads.count(), 0);
    second.invalidate("k").await.expect("it is forgotten");
    assert_eq!(get(&first, &loads).await, 1, "also in the memory of the other");
}

#[tokio::test(start_paused = true)]
async fn an_old_value_of_the_shared_level_is_served_while_a_new_one_is_loaded() {
    let window = HumanDuration::from_secs(20);
    let settings = CacheSettings { stale_while_revalidate: window, ..strict() };
    let [(first, ..), (second, ..)] = two(settings);
    let loads = Loads::default();
    assert_eq!(get(&first, &loads).await, 1);
    tokio::time::sleep(Duration::from_secs(67)).await;
    assert_eq!(get(&second, &loads).await, 1, "nobody waits");
    assert_eq!(get(&second, &loads).await, 1);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!((get(&second, &loads).await, loads.count()), (2, 2));
    assert_eq!(get(&first, &loads).await, 1, "its own memory is old");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!((get(&first, &loads).await, loads.count()), (2, 2), "renewed without a load");
}

#[tokio::test(start_paused = true)]
async fn an_old_value_of_the_shared_level_is_better_than_an_error() {
    let window = HumanDuration::from_secs(60);
    let settings = CacheSettings { stale_if_error: window, ..strict() };
    let [(first, ..), (second, ..)] = two(settings);
    let loads = Loads::default();
    assert_eq!(get(&first, &loads).await, 1);
    tokio::time::sleep(Duration::from_secs(67)).await;
    let failing = || async { Err(Status::unavailable("the database is away")) };
    let value = second.get("k", failing).await.expect("the old value");
    assert_eq!(value.as_deref(), Some(&1));
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_reaches_the_memory_of_all_processes() {
    let [(first, ..), (second, telemetry, _)] = two(strict());
    let loads = Loads::default();
    assert_eq!((get(&first, &loads).await, get(&second, &loads).await), (1, 1));
    first.invalidate("k").await.expect("it is forgotten");
    assert_eq!((get(&second, &loads).await, get(&first, &loads).await), (2, 2));
    assert_eq!(figure(&telemetry, "cache_invalidations_total", ""), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_loaded_before_an_invalidation_by_another_process_is_stored_nowhere() {
    let [(first, telemetry, end), (second, ..)] = two(strict());
    let loads = Loads::default();
    let slow = tokio::spawn({
        let (cache, loads) = (first.clone(), loads.clone());
        async move { get(&cache, &loads).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    second.invalidate("k").await.expect("it is forgotten");
    assert_eq!(slow.await.expect("it ends"), 1);
    assert_eq!(get(&second, &loads).await, 2, "it is not in the shared level");
    assert_eq!(get(&first, &loads).await, 2, "and not in memory");
    // The same when the first process does not hear of the invalidation.
    let deaf = Loads::default();
    second.invalidate("k").await.expect("it is forgotten");
    let slow = tokio::spawn({
        let (cache, deaf) = (first.clone(), deaf.clone());
        async move { get(&cache, &deaf).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    end.deafen();
    second.invalidate("k").await.expect("it is forgotten");
    assert_eq!(slow.await.expect("it ends"), 1);
    assert_eq!(get(&second, &deaf).await, 2, "the lease was not the key's any more");
    assert_eq!(figure(&telemetry, "cache_shared_requests_total", "refused"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_read_from_the_shared_level_while_it_is_invalidated_there_is_not_kept() {
    let [(cache, _, end), (other, ..)] = two(strict());
    let loads = Loads::default();
    assert_eq!(get(&other, &loads).await, 1);
    tokio::time::sleep(Duration::from_millis(1)).await;
    end.turns.store(1_000, SeqCst);
    let invalidated = tokio::spawn({
        let cache = cache.clone();
        async move { cache.invalidate("k").await }
    });
    while *end.asked.lock() == 0 {
        tokio::task::yield_now().await;
    }
    end.turns.store(0, SeqCst);
    assert_eq!(get(&cache, &loads).await, 1, "it is still there");
    assert!(!invalidated.is_finished(), "it came in between");
    invalidated.await.expect("it ends").expect("it is forgotten");
    assert_eq!(get(&cache, &loads).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_cannot_be_read_is_loaded_and_replaced() {
    let ends = processes(2, 0);
    let telemetry = Telemetry::new();
    let texts: Cache<String, String> = Cache::builder("test")
        .settings(strict())
        .shared(Arc::<Level>::clone(&ends[0]), Json)
        .build(&telemetry)
        .expect("a cache");
    let text = || async { Ok(Some("text".to_owned())) };
    texts.get("k", text).await.expect("it loads");
    let (numbers, _) = cache_on(&ends[1], strict());
    let loads = Loads::default();
    assert_eq!(get(&numbers, &loads).await, 1);
    let (again, _) = cache_on(&ends[1], strict());
    assert_eq!(get(&again, &loads).await, 1);
}

#[tokio::test(start_paused = true)]
async fn when_the_shared_level_is_away_memory_and_source_go_on() {
    let [(cache, telemetry, end), _] = two(strict());
    end.set(Mood::Away);
    let loads = Loads::default();
    for key in 0..100 {
        let number = cache.get(&key.to_string(), loads.number()).await.expect("it loads");
        assert_eq!(number.as_deref(), Some(&(key + 1)));
    }
    assert_eq!(cache.get("0", loads.number()).await.expect("it is there").as_deref(), Some(&1));
    let asked = *end.asked.lock();
    assert!(asked < 20, "{asked} questions to somebody who is away");
    assert!(figure(&telemetry, "cache_shared_requests_total", "skipped") > 80);
    let error = cache.invalidate("0").await.expect_err("others may have it");
    assert_eq!((error.code(), error.retry()), (Code::Unavailable, Retry::Outage));
    assert_eq!(cache.get("0", loads.number()).await.expect("it loads").as_deref(), Some(&101));
    end.reconnect();
    tokio::time::sleep(Duration::from_secs(3)).await;
    for key in 200..210 {
        cache.get(&key.to_string(), loads.number()).await.expect("it loads");
    }
    assert!(*end.asked.lock() - asked >= 20, "it is asked again");
}

#[tokio::test(start_paused = true)]
async fn a_shared_level_that_takes_an_invalidation_is_asked_again_at_once() {
    let [(cache, _, end), (other, ..)] = two(strict());
    end.set(Mood::Away);
    let loads = Loads::default();
    for key in 0..10 {
        cache.get(&key.to_string(), loads.number()).await.expect("it loads");
    }
    end.reconnect();
    cache.invalidate("0").await.expect("it is back");
    let loaded = get(&cache, &loads).await;
    assert_eq!(get(&other, &loads).await, loaded, "it was stored");
}

#[tokio::test(start_paused = true)]
async fn a_shared_level_that_does_not_answer_costs_a_bounded_wait() {
    let [(cache, _, end), _] = two(strict());
    end.set(Mood::Silent);
    let loads = Loads::default();
    let load = Duration::from_millis(10);
    let mut waited = Duration::ZERO;
    for key in 0..1_000 {
        let began = Instant::now();
        cache.get(&key.to_string(), loads.number()).await.expect("it loads");
        assert!(began.elapsed() <= TOO_LONG + load, "{:?}", began.elapsed());
        waited += began.elapsed() - load;
    }
    // Three to find out, then one now and then, over ten seconds of loads.
    assert!(waited <= 15 * TOO_LONG, "{waited:?}");
    let began = Instant::now();
    assert!(cache.invalidate("0").await.is_err());
    assert_eq!(began.elapsed(), Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_process_whose_connection_is_back_forgets_what_it_may_not_have_heard_of() {
    let [(first, _, end), (second, ..)] = two(strict());
    let loads = Loads::default();
    assert_eq!((get(&first, &loads).await, get(&second, &loads).await), (1, 1));
    end.deafen();
    second.invalidate("k").await.expect("it is forgotten");
    assert_eq!(get(&first, &loads).await, 1, "it has not heard of it");
    end.reconnect();
    assert_eq!(get(&first, &loads).await, 2);
}

/// A key that another process made while this one heard nothing: that it does not exist is what the
/// filter knew before.
#[tokio::test(start_paused = true)]
async fn a_process_that_hears_of_no_changes_calls_no_key_absent() {
    let [(first, telemetry, end), (second, ..)] =
        two(CacheSettings { filter_keys: 100, ..strict() });
    let filter = first.filter().expect("a filter");
    assert!(filter.rebuild().finish(), "nothing exists");
    let loads = Loads::default();
    assert!(first.get("k", loads.number()).await.expect("an answer").is_none());
    assert_eq!(figure(&telemetry, "cache_requests_total", "filtered"), 1);
    end.deafen();
    second.invalidate("k").await.expect("it came to exist");
    assert_eq!(get(&first, &loads).await, 1);
    // What was built while it heard nothing is of no use either.
    assert!(filter.rebuild().finish());
    assert!(first.get("other", loads.number()).await.expect("an answer").is_some());
    end.reconnect();
    assert!(first.get("third", loads.number()).await.expect("an answer").is_some());
    filter.due().await;
    assert!(filter.rebuild().finish());
    assert!(first.get("fourth", loads.number()).await.expect("an answer").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_an_invalidation_no_process_reads_what_was_before_it() {
    let ends = processes(3, 2);
    let caches: Vec<_> = ends.iter().map(|end| cache_on(end, strict()).0).collect();
    Versions::check(&caches).await;
}

#[test]
fn the_name_of_a_cache_is_a_part_of_keys_that_ends_at_a_colon() {
    for name in ["", "a:b", "a\nb"] {
        let error = Cache::<String, u32>::builder(name).build(&Telemetry::new());
        let error = error.expect_err("it is no name").to_string();
        assert!(error.contains("no name of a cache"), "{error}");
    }
}
