//! One load per key at a time, whatever happens to who began it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use antiphon_cache::CacheSettings;
use antiphon_core::{Code, Context, Status};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::common::{Loads, cache, figure, strict};

#[tokio::test(start_paused = true)]
async fn a_hot_key_that_expires_under_a_thousand_readers_is_loaded_once() {
    let (cache, telemetry) = cache(strict());
    let loads = Loads::default();
    assert_eq!(cache.get("hot", loads.number()).await.expect("it loads").as_deref(), Some(&1));
    tokio::time::sleep(Duration::from_secs(67)).await;
    let mut readers = JoinSet::new();
    for _ in 0..1_000 {
        let (cache, loads) = (cache.clone(), loads.clone());
        readers.spawn(async move { cache.get("hot", loads.number()).await });
    }
    for value in readers.join_all().await {
        assert_eq!(value.expect("it loads").as_deref(), Some(&2));
    }
    assert_eq!(loads.count(), 2);
    assert_eq!(figure(&telemetry, "cache_requests_total", "coalesced"), 999);
    assert_eq!(figure(&telemetry, "cache_requests_total", "miss"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_readers_on_several_threads_load_once() {
    let (cache, _) = cache(strict());
    let loads = Loads::default();
    let gate = Arc::new(Semaphore::new(0));
    let asked = Arc::new(AtomicUsize::new(0));
    let mut readers = JoinSet::new();
    for _ in 0..1_000 {
        let (cache, loads, gate) = (cache.clone(), loads.clone(), Arc::clone(&gate));
        let asked = Arc::clone(&asked);
        readers.spawn(async move {
            asked.fetch_add(1, SeqCst);
            let load = move || async move {
                let number = loads.next();
                let _ = gate.acquire().await;
                Ok(Some(number))
            };
            cache.get("hot", load).await
        });
    }
    while asked.load(SeqCst) < 1_000 {
        tokio::task::yield_now().await;
    }
    gate.add_permits(1_000);
    for value in readers.join_all().await {
        assert_eq!(value.expect("it loads").as_deref(), Some(&1));
    }
    assert_eq!(loads.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_load_goes_on_when_who_began_it_gives_up() {
    let (cache, _) = cache(strict());
    let loads = Loads::default();
    let leader = tokio::spawn({
        let (cache, loads) = (cache.clone(), loads.clone());
        async move { cache.get("k", loads.number()).await }
    });
    while loads.count() == 0 {
        tokio::task::yield_now().await;
    }
    let waiter = tokio::spawn({
        let (cache, loads) = (cache.clone(), loads.clone());
        async move { cache.get("k", loads.number()).await }
    });
    tokio::task::yield_now().await;
    leader.abort();
    let value = waiter.await.expect("it ends").expect("it loads");
    assert_eq!((value.as_deref(), loads.count()), (Some(&1), 1));
}

/// Ten thousand who wait for one that is killed: the runtime that it loads on ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_leader_is_killed_one_of_ten_thousand_waiters_loads() {
    let (cache, telemetry) = cache(strict());
    let loads = Loads::default();
    let doomed = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let begun = Arc::new(Semaphore::new(0));
    doomed.spawn({
        let (cache, loads, begun) = (cache.clone(), loads.clone(), Arc::clone(&begun));
        async move {
            let load = move || async move {
                loads.next();
                begun.add_permits(1);
                std::future::pending().await
            };
            cache.get("k", load).await
        }
    });
    let _ = begun.acquire().await.expect("it begins");
    let mut waiters = JoinSet::new();
    for _ in 0..10_000 {
        let (cache, loads) = (cache.clone(), loads.clone());
        waiters.spawn(async move {
            cache.get("k", move || async move { Ok(Some(loads.next())) }).await
        });
    }
    while figure(&telemetry, "cache_requests_total", "coalesced") < 10_000 {
        tokio::task::yield_now().await;
    }
    doomed.shutdown_background();
    for value in waiters.join_all().await {
        assert_eq!(value.expect("another loads").as_deref(), Some(&2));
    }
    assert_eq!(loads.count(), 2);
    assert_eq!(figure(&telemetry, "cache_loads_total", "lost"), 1);
}

async fn under_panics(panics: u32) -> (Loads, Vec<Result<Option<Arc<u32>>, Status>>) {
    let (cache, _) = cache(strict());
    let loads = Loads::default();
    let mut readers = JoinSet::new();
    for _ in 0..10_000 {
        let (cache, loads) = (cache.clone(), loads.clone());
        readers.spawn(async move {
            let load = move || async move {
                let number = loads.next();
                tokio::time::sleep(Duration::from_millis(10)).await;
                assert!(number > panics, "as the test wants");
                Ok(Some(number))
            };
            cache.get("k", load).await
        });
    }
    (loads, readers.join_all().await)
}

#[tokio::test(start_paused = true)]
async fn when_a_load_panics_one_of_ten_thousand_waiters_loads() {
    let (loads, answers) = under_panics(1).await;
    assert_eq!(loads.count(), 2);
    let (well, failed): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert!(failed.len() <= 1, "only the one whose load panicked may fail: {}", failed.len());
    assert!(well.iter().all(|value| matches!(value, Ok(Some(value)) if **value == 2)));
}

#[tokio::test(start_paused = true)]
async fn loads_that_always_panic_are_not_repeated_by_every_waiter() {
    let (loads, answers) = under_panics(u32::MAX).await;
    assert_eq!(loads.count(), 2);
    assert!(
        answers
            .iter()
            .all(|answer| { matches!(answer, Err(status) if status.code() == Code::Internal) })
    );
}

#[tokio::test(start_paused = true)]
async fn an_error_reaches_all_who_wait_and_is_not_kept() {
    let (cache, telemetry) = cache(strict());
    let loads = Loads::default();
    let mut readers = JoinSet::new();
    for _ in 0..100 {
        let (cache, loads) = (cache.clone(), loads.clone());
        readers.spawn(async move {
            let load = move || async move {
                loads.next();
                tokio::time::sleep(Duration::from_millis(10)).await;
                let failure = Status::unavailable("the database is away");
                let failure = failure.with_reason("DATABASE", "test").with_source("refused");
                Err(failure.with_metadata("host", "db1"))
            };
            cache.get("k", load).await
        });
    }
    for answer in readers.join_all().await {
        let status = answer.expect_err("it fails");
        assert_eq!((status.code(), status.reason()), (Code::Unavailable, "DATABASE"));
        assert_eq!(status.metadata(), [("host".to_owned(), "db1".to_owned())]);
        let source = std::error::Error::source(&status).expect("the cause");
        assert_eq!(source.to_string(), "refused");
    }
    assert_eq!(loads.count(), 1);
    assert_eq!(figure(&telemetry, "cache_loads_total", "failed"), 1);
    assert!(cache.get("k", loads.number()).await.is_ok(), "the next one loads again");
    assert_eq!(loads.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_waits_gives_up_at_its_own_deadline_and_the_load_goes_on() {
    let (cache, _) = cache(strict());
    let loads = Loads::default();
    let began = Instant::now();
    let hurried = Context::root().with_deadline(began + Duration::from_millis(5));
    let answer = hurried.clone().scope(cache.get("k", loads.number())).await;
    assert_eq!(answer.expect_err("it is late").code(), Code::DeadlineExceeded);
    assert_eq!(began.elapsed(), Duration::from_millis(5));
    let answer = hurried.scope(cache.get("other", loads.number())).await;
    assert_eq!(answer.expect_err("it is late").code(), Code::DeadlineExceeded);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(loads.count(), 1, "who is late already begins nothing");
    assert_eq!(cache.get("k", loads.number()).await.expect("it is there").as_deref(), Some(&1));
}

#[tokio::test(start_paused = true)]
async fn a_load_ends_at_its_time_and_has_the_callers_trace_without_its_deadline() {
    let (cache, _) = cache(strict());
    let context = Context::root().with_correlation_id("order-7").with_idempotency_key("once");
    let context = context.with_deadline(Instant::now() + Duration::from_secs(60));
    let began = Instant::now();
    let seen = Arc::new(parking_lot::Mutex::new(None));
    let load = {
        let seen = Arc::clone(&seen);
        move || async move {
            *seen.lock() = Some(Context::current());
            std::future::pending().await
        }
    };
    let answer = context.scope(cache.get("k", load)).await;
    assert_eq!(answer.expect_err("it takes too long").code(), Code::DeadlineExceeded);
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    let seen = seen.lock().clone().expect("it ran");
    assert_eq!(seen.correlation_id(), "order-7");
    assert_eq!(seen.idempotency_key(), None);
    assert_eq!(seen.deadline(), Some(began + Duration::from_secs(5)));
}

#[tokio::test(start_paused = true)]
async fn no_more_loads_run_than_may_and_those_that_nobody_wants_any_more_do_not_begin() {
    let (cache, _) = cache(CacheSettings { loads_max: 4, ..strict() });
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let loads = Loads::default();
    let read = |key: u32| {
        let (running, most, loads) = (Arc::clone(&running), Arc::clone(&most), loads.clone());
        let cache = cache.clone();
        tokio::spawn(async move {
            let load = move || async move {
                loads.next();
                most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                running.fetch_sub(1, SeqCst);
                Ok(Some(key))
            };
            cache.get(&key.to_string(), load).await
        })
    };
    let stay: Vec<_> = (0..8).map(read).collect();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let leave: Vec<_> = (100..200).map(read).collect();
    tokio::time::sleep(Duration::from_millis(1)).await;
    leave.iter().for_each(|reader| reader.abort());
    for (key, reader) in stay.into_iter().enumerate() {
        let value = reader.await.expect("it ends").expect("it loads").expect("a value");
        assert_eq!(*value as usize, key);
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!((most.load(SeqCst), loads.count()), (4, 8));
    assert!(cache.get("100", Loads::default().number()).await.is_ok(), "it can be wanted again");
}

#[tokio::test(start_paused = true)]
async fn entries_and_bytes_are_bounded() {
    let capacity = CacheSettings { capacity: 100, ..strict() };
    let bytes_max = antiphon_config::ByteSize::kib(10);
    let bytes = CacheSettings { bytes_max, ..strict() };
    for (settings, size, most) in [(capacity, 0, 100), (bytes, 1_024, 10)] {
        let telemetry = antiphon_telemetry::Telemetry::new();
        let cache = antiphon_cache::Cache::<u32, u32>::builder("test")
            .settings(settings)
            .weigh(move |_, _| size)
            .build(&telemetry)
            .expect("a cache");
        for key in 0..5_000 {
            cache.get(&key, move || async move { Ok(Some(key)) }).await.expect("it loads");
        }
        let entries = cache.entry_count();
        // What memory does late it does within its next few hundred changes.
        assert!((1..=most).contains(&entries), "{entries} entries");
        let evictions = figure(&telemetry, "cache_evictions_total", "");
        assert!(evictions > 4_000, "{evictions} evictions");
    }
}
