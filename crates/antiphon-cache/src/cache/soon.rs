//! Invalidations that nobody waits for: the shared level hears of them from a task that does not give
//! up as long as the old value can be served, and when the process ends, from a component.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::retry::Decision;
use antiphon_core::{BoxError, Component, Retry, RetryPolicy, Shutdown, Stage};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::{Cache, Inner};

/// The waits between attempts to reach the shared level.
const AGAIN: RetryPolicy =
    RetryPolicy::exponential(Duration::from_millis(50), Duration::from_secs(2));
/// How many keys are sent at a time.
const KEYS_MAX: usize = 1_000;
/// How long the end of a process waits for a level that is away or slow.
const END_WITHIN: Duration = Duration::from_secs(2);

/// The keys that the shared level has not heard of yet. What it has of them is old.
pub(super) struct Pending<K> {
    state: Mutex<State<K>>,
    /// Rung when nothing waits any more.
    sent: Notify,
}

struct State<K> {
    keys: HashMap<K, Waiting>,
    /// Whether there is a task that sends them.
    sending: bool,
}

struct Waiting {
    /// When what was stored before has lost its time anyway.
    until: Instant,
    /// It is under way, and was not asked for again since.
    is_taken: bool,
}

impl<K> Default for Pending<K> {
    fn default() -> Self {
        let state = Mutex::new(State { keys: HashMap::new(), sending: false });
        Self { state, sent: Notify::new() }
    }
}

impl<K: Hash + Eq + Clone> Pending<K> {
    /// Takes keys on, up to `capacity` of them; yields how many were too many.
    fn add(&self, keys: &[K], until: Instant, capacity: u64) -> usize {
        let mut state = self.state.lock();
        let mut left_out = 0;
        for key in keys {
            let full = u64::try_from(state.keys.len()).is_ok_and(|count| count >= capacity);
            if full && !state.keys.contains_key(key) {
                left_out += 1;
            } else {
                state.keys.insert(key.clone(), Waiting { until, is_taken: false });
            }
        }
        left_out
    }

    /// Whether the shared level has not heard of a key yet.
    pub(super) fn has(&self, key: &K) -> bool {
        self.state.lock().keys.contains_key(key)
    }

    /// Whether the caller has to start a task that sends.
    fn claim(&self) -> bool {
        let mut state = self.state.lock();
        !state.keys.is_empty() && !std::mem::replace(&mut state.sending, true)
    }

    /// How many keys wait or are under way; at least one as long as there is a task that sends.
    fn left(&self) -> usize {
        let state = self.state.lock();
        state.keys.len().max(usize::from(state.sending))
    }

    /// Waits until nothing is left.
    async fn all_sent(&self) {
        loop {
            let mut sent = std::pin::pin!(self.sent.notified());
            // From here on no end is missed.
            sent.as_mut().enable();
            if self.left() == 0 {
                return;
            }
            sent.await;
        }
    }

    /// Some keys to send; without any, the task is done.
    fn take(&self) -> Option<Vec<K>> {
        let mut state = self.state.lock();
        let some: Vec<K> = state
            .keys
            .iter_mut()
            .take(KEYS_MAX)
            .map(|(key, waiting)| {
                waiting.is_taken = true;
                key.clone()
            })
            .collect();
        if some.is_empty() {
            state.sending = false;
            self.sent.notify_waiters();
            return None;
        }
        Some(some)
    }

    /// These that were taken are done with; but not those that somebody asked for again meanwhile.
    fn sent(&self, keys: &[K]) {
        let mut state = self.state.lock();
        for key in keys {
            if state.keys.get(key).is_some_and(|waiting| waiting.is_taken) {
                state.keys.remove(key);
            }
        }
    }

    /// These were not sent. What was stored before some of them may be over by now.
    fn put_back(&self, keys: &[K], now: Instant) {
        let mut state = self.state.lock();
        for key in keys {
            let Some(waiting) = state.keys.get_mut(key) else { continue };
            if waiting.until <= now {
                state.keys.remove(key);
            } else {
                waiting.is_taken = false;
            }
        }
    }
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// [`Self::invalidate_many`] for who cannot wait, such as the end of a transaction: this process
    /// has forgotten the keys when it returns, and the shared level hears of them at once, from a task
    /// in the background. If the level is away, the task tries again until it is reached or the old
    /// values are over by themselves; a process that dies before that leaves them to their time.
    ///
    /// Keys that wait are sent together, and a key that waits already is not sent twice. As many keys
    /// wait as the cache has room for (`capacity`); those of others are left to their time, which is
    /// logged.
    ///
    /// Outside a Tokio runtime the shared level hears of the keys with the next call inside one. A
    /// process that ends in order waits for what waits if it runs [`Self::last_words`].
    pub fn invalidate_soon<'a, Q>(&self, keys: impl IntoIterator<Item = &'a Q>)
    where
        K: Borrow<Q>,
        Q: ToOwned<Owned = K> + ?Sized + 'a,
    {
        let cache = &self.0;
        let keys: Vec<K> = keys.into_iter().map(ToOwned::to_owned).collect();
        cache.metrics.invalidations.inc_by(u64::try_from(keys.len()).unwrap_or(u64::MAX));
        // First, or who comes in between would keep the old value of the shared level here.
        if cache.shared.is_some() {
            self.pend(&keys);
        }
        keys.iter().for_each(|key| cache.forget(key));
        self.send_soon();
    }

    /// The shared level is to hear of these keys; until it has, what it has of them is not believed.
    pub(super) fn pend(&self, keys: &[K]) {
        let cache = &self.0;
        // What is being loaded at this moment, by whatever process, is old and stored last.
        let until = Instant::now() + cache.settings.load_timeout.0 + cache.settings.kept_max();
        let left_out = cache.pending.add(keys, until, cache.settings.capacity);
        if left_out > 0 {
            let cache = &cache.name;
            tracing::warn!(cache, left_out, "too many invalidations wait for the shared level");
        }
    }

    /// A component that keeps the process from ending before the shared level has heard of what
    /// [`Self::invalidate_soon`] was told, for two seconds at most: what the last transactions of a
    /// process change must not stay there until its time is over.
    pub fn last_words(&self) -> LastWords<K, V> {
        let name = format!("invalidations of the cache {}", self.name());
        LastWords { cache: self.clone(), name }
    }

    pub(super) fn send_soon(&self) {
        let cache = &self.0;
        if let Ok(runtime) = Handle::try_current()
            && cache.pending.claim()
        {
            runtime.spawn(send(Arc::clone(cache)));
        }
    }
}

/// Sends what waits before the process ends. Got from [`Cache::last_words`].
#[must_use = "it does nothing until it is run"]
pub struct LastWords<K: Hash + Eq, V> {
    cache: Cache<K, V>,
    name: String,
}

impl<K, V> Component for LastWords<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    fn name(&self) -> &str {
        &self.name
    }

    /// After everybody who ends transactions.
    fn stage(&self) -> Stage {
        Stage::Relay
    }

    async fn run(self, shutdown: Shutdown) -> Result<(), BoxError> {
        shutdown.draining().await;
        self.cache.send_soon();
        let pending = &self.cache.0.pending;
        if timeout(END_WITHIN, pending.all_sent()).await.is_err() {
            let (cache, left) = (self.cache.name(), pending.left());
            tracing::warn!(cache, left, "the shared level does not hear of the last invalidations");
        }
        Ok(())
    }
}

impl<K: Hash + Eq, V> fmt::Debug for LastWords<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LastWords").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Sends what waits until nothing does.
async fn send<K, V>(cache: Arc<Inner<K, V>>)
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    let Some(shared) = &cache.shared else { return };
    let mut failures = 0;
    while let Some(keys) = cache.pending.take() {
        match shared.invalidate(&cache.name, keys.iter()).await {
            Ok(()) => {
                failures = 0;
                cache.pending.sent(&keys);
            }
            Err(error) => {
                failures += 1;
                if failures == 1 {
                    let cache = &cache.name;
                    tracing::warn!(cache, ?error, "invalidations wait for the shared level");
                }
                cache.pending.put_back(&keys, Instant::now());
                let wait = match AGAIN.decide(failures, Retry::Outage, fastrand::f64()) {
                    Decision::RetryAfter(wait) => wait,
                    Decision::GiveUp => AGAIN.delay_max,
                };
                tokio::time::sleep(wait).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent next.
    fn sorted(pending: &Pending<u32>) -> Vec<u32> {
        let mut keys = pending.take().unwrap_or_default();
        keys.sort_unstable();
        keys
    }

    #[tokio::test(start_paused = true)]
    async fn one_task_sends_what_waits_and_each_key_once() {
        let pending = Pending::default();
        let until = Instant::now() + Duration::from_secs(60);
        assert!(!pending.claim(), "nothing waits");
        assert_eq!(pending.add(&[1, 2, 2, 1], until, 10), 0);
        assert!(pending.claim() && !pending.claim());
        assert_eq!(sorted(&pending), [1, 2]);
        assert_eq!(pending.add(&[2, 3], until, 10), 0);
        assert!(!pending.claim(), "the task looks again");
        pending.sent(&[1, 2]);
        assert!(!pending.has(&1) && pending.has(&2) && pending.has(&3));
        assert_eq!(sorted(&pending), [2, 3], "the second was asked for again");
        pending.sent(&[2, 3]);
        assert!(pending.take().is_none());
        assert_eq!(pending.add(&[4], until, 10), 0);
        assert!(pending.claim(), "the task had ended");
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded_in_number_and_time() {
        let pending = Pending::default();
        let now = Instant::now();
        let (soon, late) = (now + Duration::from_secs(1), now + Duration::from_secs(60));
        assert_eq!(pending.add(&[1, 2, 3], soon, 2), 1);
        assert_eq!(pending.add(&[1], late, 2), 0, "it waits already");
        let taken = pending.take().expect("two keys");
        pending.put_back(&taken, now + Duration::from_secs(2));
        assert_eq!(sorted(&pending), [1], "the old value of the other is over");
        pending.sent(&[1]);
        assert_eq!(pending.add(&[7], soon, 2), 0);
        let taken = pending.take().expect("a key");
        pending.add(&[7], late, 2);
        pending.put_back(&taken, now + Duration::from_secs(2));
        assert_eq!(sorted(&pending), [7], "the later time counts");
    }
}
