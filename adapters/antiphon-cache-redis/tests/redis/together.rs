//! Caches of several processes over one server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use antiphon_core::Status;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::common::{Loads, cache, connected, get, read_until, settings};

#[tokio::test]
async fn what_one_loaded_the_others_find_and_an_invalidation_reaches_all_memories() {
    let settings = settings();
    let (one, two) = (connected(&settings).await, connected(&settings).await);
    let (first, second) = (cache(&one), cache(&two));
    let loads = Loads::default();
    assert_eq!(get(&first, "k", &loads).await, 1);
    one.stored("k").await;
    assert_eq!(get(&second, "k", &loads).await, 1, "it is not loaded again");
    first.invalidate("k").await.expect("it is forgotten");
    assert_eq!(get(&first, "k", &loads).await, 2);
    read_until(&two, &second, "k", 2).await;
}

#[tokio::test]
async fn what_another_process_invalidated_while_it_was_loaded_is_not_stored() {
    let settings = settings();
    let (one, two) = (connected(&settings).await, connected(&settings).await);
    let (first, second) = (cache(&one), cache(&two));
    let (begun, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let slow = tokio::spawn({
        let (cache, begun, gate) = (first.clone(), Arc::clone(&begun), Arc::clone(&gate));
        let load = move || async move {
            begun.add_permits(1);
            let _ = gate.acquire().await;
            Ok::<_, Status>(Some(100))
        };
        async move { cache.get("k", load).await }
    });
    let _ = begun.acquire().await.expect("it begins");
    second.invalidate("k").await.expect("it is forgotten");
    gate.add_permits(1);
    assert_eq!(slow.await.expect("it ends").expect("it loads").as_deref(), Some(&100));
    let loads = Loads::default();
    assert_eq!(get(&second, "k", &loads).await, 1, "the old value is not in Redis");
}

/// Readers of a process never see a version from before an invalidation by that process, whatever the
/// other processes load and store at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_invalidation_its_process_does_not_read_what_was_before_it() {
    let settings = settings();
    let (one, two) = (connected(&settings).await, connected(&settings).await);
    let (first, second) = (cache(&one), cache(&two));
    let source = Arc::new(AtomicU32::new(1));
    let settled = Arc::new(AtomicU32::new(1));
    let ended = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for number in 0..4 {
        let own = number % 2 == 0;
        let cache = if own { first.clone() } else { second.clone() };
        let (source, settled) = (Arc::clone(&source), Arc::clone(&settled));
        let ended = Arc::clone(&ended);
        readers.spawn(async move {
            let mut reads = 0_u32;
            while !ended.load(SeqCst) {
                let least = settled.load(SeqCst);
                let source = Arc::clone(&source);
                let load = move || async move {
                    let version = source.load(SeqCst);
                    for _ in 0..version % 5 {
                        tokio::task::yield_now().await;
                    }
                    Ok::<_, Status>(Some(version))
                };
                let version = *cache.get("k", load).await.expect("an answer").expect("a value");
                assert!(!own || version >= least, "{version} after the invalidation of {least}");
                reads += 1;
                tokio::task::yield_now().await;
            }
            reads
        });
    }
    for version in 2..500 {
        source.store(version, SeqCst);
        first.invalidate("k").await.expect("it is forgotten");
        settled.store(version, SeqCst);
    }
    // The other process hears of the last one, too: nothing old is left anywhere.
    read_until(&two, &second, "k", 499).await;
    ended.store(true, SeqCst);
    let reads: u32 = readers.join_all().await.iter().sum();
    assert!(reads > 500, "{reads} reads");
}

#[tokio::test]
async fn a_level_that_is_dropped_ends_its_connection() {
    let settings = settings();
    let level = connected(&settings).await;
    let (weak, end) = (Arc::downgrade(&level), level.end());
    let cache = cache(&level);
    drop(level);
    assert!(weak.upgrade().is_some(), "the cache keeps it");
    drop(cache);
    end.await;
}
