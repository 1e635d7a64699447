//! Which keys surely do not exist.
//!
//! A Bloom filter of the keys that exist answers "surely not" or "maybe". It keeps lookups of made-up
//! keys, each asked for once, from the source: negative entries only help against keys that are asked
//! for again. What it must never do is call a key absent that exists, so it answers "maybe" to
//! everything until it was given all keys, and again from the moment when changes may have been missed.
//!
//! A process that does not hear of the changes of others for a while, because its shared level is away,
//! cannot know which keys came to exist meanwhile: everything may exist until it hears again and the
//! filter was built anew.
//!
//! Keys cannot be taken out of such a filter, so it is built anew from time to time, beside the one in
//! use. Keys that are added meanwhile go into both.

use std::hash::{BuildHasher, Hash, RandomState};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use fastbloom::AtomicBloomFilter;
use parking_lot::RwLock;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::freshness::jittered;

/// The filter of a cache's existing keys. Got from [`Cache::filter`](crate::Cache::filter).
///
/// [`Cache::invalidate`](crate::Cache::invalidate) adds its key, so whoever reports each change feeds
/// the filter, too; a key that ceased to exist stays in it until it is built anew. The keys that exist
/// already are given to it at the start and whenever [`Self::due`] returns, which is what
/// [`Cache::filter_keeper`](crate::Cache::filter_keeper) does where all of them can be read at once:
///
/// ```
/// # async fn keep(filter: &antiphon_cache::KeyFilter<String>, all: impl AsyncFn() -> Vec<String>) {
/// loop {
///     filter.due().await;
///     let rebuild = filter.rebuild(); // before the keys are read
///     for key in all().await {
///         rebuild.add(&key);
///     }
///     rebuild.finish();
/// }
/// # }
/// ```
pub struct KeyFilter<K> {
    keys_min: usize,
    false_rate: f64,
    age_max: Duration,
    /// Random, so that nobody outside can look for keys that pass.
    hasher: RandomState,
    state: RwLock<State>,
    changed: Notify,
    keys: PhantomData<fn(&K)>,
}

#[derive(Default)]
struct State {
    complete: Option<Arc<Generation>>,
    building: Option<Arc<Generation>>,
    /// Changes pass this process by.
    deaf: bool,
    /// How many keys there were when it was last complete: there are hardly fewer the next time.
    keys_before: usize,
}

impl State {
    /// The filter that may be believed.
    fn in_use(&self) -> Option<&Arc<Generation>> {
        self.complete.as_ref().filter(|_| !self.deaf)
    }

    /// About how many keys there are.
    fn keys(&self) -> usize {
        let complete = self.complete.as_ref();
        complete.map_or(self.keys_before, |complete| complete.keys.load(Relaxed))
    }

    /// When it should be built anew.
    fn due(&self) -> Option<Instant> {
        if self.deaf {
            return None;
        }
        let at = match &self.complete {
            Some(complete) if complete.keys.load(Relaxed) < complete.room => complete.old_from,
            _ => Instant::now(),
        };
        Some(at)
    }
}

struct Generation {
    bloom: AtomicBloomFilter<RandomState>,
    /// How many it was made for, and how many are in it.
    room: usize,
    keys: AtomicUsize,
    /// When it is too old. Not at the same moment in all processes that were started together: each of
    /// them reads all keys then.
    old_from: Instant,
}

impl Generation {
    fn add(&self, hash: u64) -> bool {
        let known = self.bloom.insert_hash(hash);
        // A key that looks known may be new; the count is as good as the filter.
        !known && self.keys.fetch_add(1, Relaxed) + 1 == self.room
    }
}

impl<K: Hash> KeyFilter<K> {
    /// `deaf`: changes pass this process by until it is told otherwise.
    pub(crate) fn new(keys_min: usize, false_rate: f64, age_max: Duration, deaf: bool) -> Self {
        Self {
            keys_min: keys_min.max(1),
            false_rate,
            age_max,
            hasher: RandomState::new(),
            state: RwLock::new(State { deaf, ..State::default() }),
            changed: Notify::new(),
            keys: PhantomData,
        }
    }

    /// Whether this key certainly does not exist.
    pub(crate) fn is_surely_absent<Q: Hash + ?Sized>(&self, key: &Q) -> bool {
        let state = self.state.read();
        state
            .in_use()
            .is_some_and(|generation| !generation.bloom.contains_hash(self.hasher.hash_one(key)))
    }

    /// From now on this key may exist.
    pub fn add<Q: Hash + ?Sized>(&self, key: &Q) {
        let hash = self.hasher.hash_one(key);
        let state = self.state.read();
        if let Some(building) = &state.building {
            building.add(hash);
        }
        if state.complete.as_ref().is_some_and(|complete| complete.add(hash)) {
            self.changed.notify_waiters();
        }
    }

    /// Begins to build the filter anew. The one in use stays in use until the new one is finished. A
    /// rebuild that was begun before and is not finished comes to nothing.
    ///
    /// Begin first and read the keys then: what comes to exist after they were read is added by its
    /// invalidation.
    #[must_use = "it does nothing until it is finished"]
    pub fn rebuild(&self) -> Rebuild<'_, K> {
        // Room to grow, so that it does not have to be built anew soon.
        let room = self.keys_min.max(self.state.read().keys().saturating_mul(2));
        let bloom = AtomicBloomFilter::with_false_pos(self.false_rate)
            .hasher(self.hasher.clone())
            .expected_items(room);
        let old_from = Instant::now() + jittered(self.age_max, fastrand::f64());
        let generation = Arc::new(Generation { bloom, room, keys: AtomicUsize::new(0), old_from });
        self.state.write().building = Some(Arc::clone(&generation));
        Rebuild { filter: self, generation }
    }

    /// Changes may have been missed: everything may exist, until the filter was built anew.
    pub(crate) fn open(&self) {
        let mut state = self.state.write();
        state.keys_before = state.keys();
        (state.complete, state.building) = (None, None);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Whether changes pass this process by: then everything may exist.
    pub(crate) fn set_deaf(&self, deaf: bool) {
        self.state.write().deaf = deaf;
        self.changed.notify_waiters();
    }

    /// Whether it was given all keys, and so keeps any out.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.state.read().in_use().is_some()
    }

    /// How many keys are in it, about; 0 while it is not complete.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.read().complete.as_ref().map_or(0, |complete| complete.keys.load(Relaxed))
    }

    /// Whether no key is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until it should be built anew: it is not complete, there are more keys in it than it was
    /// made for, or it is older than `filter_age_max`, give or take a tenth. It never should while changes pass the process
    /// by, since it would be of no use.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn due(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let due = self.state.read().due();
            match due {
                Some(due) if due <= Instant::now() => return,
                Some(due) => drop(tokio::time::timeout_at(due, changed).await),
                None => changed.await,
            }
        }
    }
}

impl<K> std::fmt::Debug for KeyFilter<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyFilter").field("keys_min", &self.keys_min).finish_non_exhaustive()
    }
}

/// A filter that is being built. Dropping it leaves everything as it was.
#[must_use = "it does nothing until it is finished"]
pub struct Rebuild<'a, K> {
    filter: &'a KeyFilter<K>,
    generation: Arc<Generation>,
}

impl<K: Hash> Rebuild<'_, K> {
    /// This key exists.
    pub fn add<Q: Hash + ?Sized>(&self, key: &Q) {
        self.generation.add(self.filter.hasher.hash_one(key));
    }

    /// It was given all keys that exist: uses it. Yields whether it is used, which it is not when
    /// changes may have been missed since it was begun, or another rebuild was begun.
    pub fn finish(self) -> bool {
        let mut state = self.filter.state.write();
        let current = state.building.as_ref().is_some_and(|one| Arc::ptr_eq(one, &self.generation));
        if current {
            state.complete = state.building.take();
        }
        current
    }
}

impl<K> std::fmt::Debug for Rebuild<'_, K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rebuild").field("room", &self.generation.room).finish_non_exhaustive()
    }
}

impl<K> Drop for Rebuild<'_, K> {
    fn drop(&mut self) {
        let mut state = self.filter.state.write();
        if state.building.as_ref().is_some_and(|one| Arc::ptr_eq(one, &self.generation)) {
            state.building = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter() -> KeyFilter<u32> {
        KeyFilter::new(1_000, 0.001, Duration::from_secs(60), false)
    }

    fn build(filter: &KeyFilter<u32>, keys: impl IntoIterator<Item = u32>) -> bool {
        let rebuild = filter.rebuild();
        keys.into_iter().for_each(|key| rebuild.add(&key));
        rebuild.finish()
    }

    #[test]
    fn everything_may_exist_until_all_keys_were_given() {
        let filter = filter();
        assert!(!filter.is_surely_absent(&1));
        let rebuild = filter.rebuild();
        rebuild.add(&1);
        assert!(!filter.is_surely_absent(&2), "it is not finished");
        drop(rebuild);
        assert!(!filter.is_complete() && !filter.is_surely_absent(&2), "it never was");
        assert!(build(&filter, 0..1_000));
        assert!((0..1_000).all(|key| !filter.is_surely_absent(&key)), "an existing key is refused");
        let passed = (1_000..101_000).filter(|key| !filter.is_surely_absent(key)).count();
        assert!(passed < 300, "{passed} of 100,000 pass, where 100 should");
    }

    #[test]
    fn keys_that_come_while_it_is_built_are_in_the_old_and_the_new_one() {
        let filter = filter();
        assert!(build(&filter, 0..10));
        let rebuild = filter.rebuild();
        filter.add(&500);
        assert!(!filter.is_surely_absent(&500));
        assert!(rebuild.finish());
        assert!(!filter.is_surely_absent(&500));
        assert!(filter.is_surely_absent(&5), "what was not given again is gone");
    }

    #[test]
    fn a_rebuild_that_missed_changes_is_not_used() {
        let filter = filter();
        assert!(build(&filter, 0..10));
        let rebuild = filter.rebuild();
        filter.open();
        assert!(!rebuild.finish() && !filter.is_complete());
        let (first, second) = (filter.rebuild(), filter.rebuild());
        assert!(!first.finish(), "another one was begun");
        assert!(second.finish());
    }

    #[tokio::test(start_paused = true)]
    async fn everything_may_exist_while_changes_pass_it_by() {
        let filter = filter();
        assert!(build(&filter, 0..10) && filter.is_surely_absent(&500));
        filter.set_deaf(true);
        assert!(!filter.is_surely_absent(&500) && !filter.is_complete());
        let due = tokio::time::timeout(Duration::from_secs(600), filter.due()).await;
        assert!(due.is_err(), "it is not built for nothing");
        filter.open();
        let ((), ()) = tokio::join!(filter.due(), async {
            tokio::task::yield_now().await;
            filter.set_deaf(false);
        });
        assert!(!filter.is_surely_absent(&500), "what came meanwhile is not in it");
        assert!(build(&filter, 0..10) && filter.is_surely_absent(&500));
    }

    #[test]
    fn it_has_room_for_as_many_keys_as_there_were() {
        let filter = filter();
        assert!(build(&filter, 0..900));
        let keys = filter.len();
        filter.open();
        assert!(filter.is_empty() && keys > 800);
        assert_eq!(filter.rebuild().generation.room, 2 * keys);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_due_when_incomplete_full_or_old() {
        let filter = filter();
        filter.due().await;
        assert!(build(&filter, 0..10));
        let began = Instant::now();
        filter.due().await;
        assert!((54..=66).contains(&began.elapsed().as_secs()), "old");
        assert!(build(&filter, 0..10));
        let began = Instant::now();
        let ((), ()) = tokio::join!(filter.due(), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            (0..1_100).for_each(|key| filter.add(&key));
        });
        assert_eq!(began.elapsed().as_secs(), 1, "full");
        assert!(build(&filter, 0..1_100));
        let ((), ()) = tokio::join!(filter.due(), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            filter.open();
        });
        assert_eq!(began.elapsed().as_secs(), 2, "incomplete");
    }
}
