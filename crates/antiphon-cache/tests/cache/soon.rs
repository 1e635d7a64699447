//! Invalidations that nobody waits for, and the component that keeps the filter complete.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use antiphon_cache::CacheSettings;
use antiphon_config::HumanDuration;
use antiphon_core::{Component, ShutdownHandle, Status};
use tokio::time::Instant;

use crate::common::{Loads, cache, figure, strict};
use crate::level::Mood;
use crate::shared::{get, two};

#[tokio::test(start_paused = true)]
async fn it_is_forgotten_here_at_once_and_by_the_others_soon() {
    let [(first, telemetry, _), (second, ..)] = two(strict());
    let loads = Loads::default();
    assert_eq!((get(&first, &loads).await, get(&second, &loads).await), (1, 1));
    tokio::time::sleep(Duration::from_millis(1)).await;
    first.invalidate_soon(["k"]);
    let asking = first.get("k", loads.number());
    let asked = tokio::time::timeout(Duration::ZERO, asking).await;
    assert!(asked.is_err(), "here it is gone when the call returns: it has to be loaded");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(get(&second, &loads).await > 1 && get(&first, &loads).await > 1);
    assert_eq!(figure(&telemetry, "cache_invalidations_total", ""), 1);
}

#[tokio::test(start_paused = true)]
async fn a_level_that_is_away_hears_of_it_when_it_is_back() {
    let [(first, _, level), (second, ..)] = two(strict());
    let loads = Loads::default();
    assert_eq!((get(&first, &loads).await, get(&second, &loads).await), (1, 1));
    level.set(Mood::Away);
    first.invalidate_soon(["k"]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(get(&second, &loads).await, 1, "nobody could tell it");
    level.set(Mood::Well);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(get(&second, &loads).await, 2);
}

#[tokio::test(start_paused = true)]
async fn what_the_level_has_not_heard_of_is_not_read_there() {
    let [(first, _, level), (second, ..)] = two(strict());
    let loads = Loads::default();
    assert_eq!((get(&first, &loads).await, get(&second, &loads).await), (1, 1));
    level.set(Mood::ReadOnly);
    first.invalidate_soon(["k"]);
    for _ in 0..10 {
        assert_eq!(get(&first, &loads).await, 2, "loaded once, and kept here");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(first.invalidate("k").await.is_err());
    assert_eq!(get(&first, &loads).await, 3);
    level.set(Mood::Well);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(get(&second, &loads).await, 4, "it hears of it in the end");
}

#[tokio::test(start_paused = true)]
async fn many_calls_while_the_level_is_silent_are_few_questions() {
    let [(first, _, level), _] = two(strict());
    level.set(Mood::Silent);
    let before = *level.asked.lock();
    for number in 0..1_000 {
        first.invalidate_soon([number.to_string().as_str()]);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(*level.asked.lock() - before <= 2, "one at a time");
    level.set(Mood::Well);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let asked = *level.asked.lock() - before;
    assert!(asked <= 6, "{asked} questions: all that waits goes at once");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_ends_waits_until_the_level_has_heard_of_it() {
    let [(first, _, level), (second, ..)] = two(strict());
    let loads = Loads::default();
    assert_eq!((get(&first, &loads).await, get(&second, &loads).await), (1, 1));
    level.turns.store(1_000, SeqCst);
    let (handle, shutdown) = ShutdownHandle::new();
    let ending = tokio::spawn(first.last_words().run(shutdown));
    first.invalidate_soon(["k"]);
    handle.drain(Duration::from_secs(30));
    let began = Instant::now();
    ending.await.expect("it ends").expect("well");
    assert_eq!(get(&second, &loads).await, 2, "it was told before the end");
    assert!(began.elapsed() < Duration::from_secs(1), "and then nothing kept it");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_ends_does_not_wait_long_for_a_level_that_is_away() {
    for mood in [Mood::Away, Mood::Silent] {
        let [(first, _, level), _] = two(strict());
        level.set(mood);
        let (handle, shutdown) = ShutdownHandle::new();
        let ending = tokio::spawn(first.last_words().run(shutdown));
        first.invalidate_soon(["k"]);
        let began = Instant::now();
        handle.drain(Duration::from_secs(30));
        ending.await.expect("it ends").expect("well");
        assert_eq!(began.elapsed(), Duration::from_secs(2), "{mood:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_filter_is_built_at_the_start_and_again_when_the_keys_could_not_be_read() {
    let settings = CacheSettings {
        filter_keys: 100,
        filter_age_max: HumanDuration::from_secs(10),
        negative_ttl: HumanDuration(Duration::ZERO),
        ..strict()
    };
    let (cache, telemetry) = cache(settings);
    let (fails, reads) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
    let keeper = cache.filter_keeper({
        let (fails, reads) = (Arc::clone(&fails), Arc::clone(&reads));
        move || {
            let (fails, reads) = (Arc::clone(&fails), Arc::clone(&reads));
            async move {
                reads.fetch_add(1, SeqCst);
                match fails.load(SeqCst) {
                    true => Err(Status::unavailable("the database is away")),
                    false => Ok(vec!["k".to_owned()]),
                }
            }
        }
    });
    let (handle, shutdown) = ShutdownHandle::new();
    let running = tokio::spawn(keeper.run(shutdown));
    let loads = Loads::default();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(cache.get("x", loads.number()).await.expect("an answer").is_some(), "it may exist");
    fails.store(false, SeqCst);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(cache.get("y", loads.number()).await.expect("an answer").is_none());
    assert!(cache.get("k", loads.number()).await.expect("an answer").is_some());
    assert_eq!(loads.count(), 2);
    assert_eq!(figure(&telemetry, "cache_requests_total", "filtered"), 1);
    // What came to exist where nobody told this process is known when the filter is built anew.
    let before = reads.load(SeqCst);
    tokio::time::sleep(Duration::from_secs(10)).await;
    // Once in nine to eleven seconds.
    assert!((1..=2).contains(&(reads.load(SeqCst) - before)));
    handle.drain(Duration::from_secs(1));
    running.await.expect("it ends").expect("well");
}
