//! What keeps a cache's filter of existing keys complete.

use std::hash::Hash;
use std::time::Duration;

use antiphon_core::retry::Decision;
use antiphon_core::{BoxError, Component, Retry, RetryPolicy, Shutdown, Stage, Status};

use crate::{Cache, KeyFilter};

/// The waits between attempts to read the keys.
const AGAIN: RetryPolicy =
    RetryPolicy::exponential(Duration::from_millis(100), Duration::from_secs(10));

/// A component that gives a cache's filter all keys that exist, at the start and whenever the filter is
/// due. Got from [`Cache::filter_keeper`]. Without a filter it does nothing.
#[must_use = "it does nothing until it is run"]
pub struct FilterKeeper<K: Hash + Eq, V, F> {
    cache: Cache<K, V>,
    name: String,
    keys: F,
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// What keeps the [filter](KeyFilter) of this cache complete; `keys` reads all keys that exist.
    ///
    /// A process that does not hear of each new key, because another process made it and there is no
    /// shared level, calls the key absent until the filter is built anew: `filter_age_max` is short
    /// then.
    pub fn filter_keeper<F, Fut>(&self, keys: F) -> FilterKeeper<K, V, F>
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<K>, Status>> + Send,
    {
        let name = format!("filter of the cache {}", self.name());
        FilterKeeper { cache: self.clone(), name, keys }
    }
}

impl<K, V, F, Fut> FilterKeeper<K, V, F>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<K>, Status>> + Send,
{
    async fn run_forever(&self, filter: &KeyFilter<K>) {
        let mut failures = 0;
        loop {
            filter.due().await;
            // Before the keys are read: those that come meanwhile go into it, too.
            let rebuild = filter.rebuild();
            let error = match (self.keys)().await {
                Ok(keys) => {
                    keys.iter().for_each(|key| rebuild.add(key));
                    rebuild.finish();
                    failures = 0;
                    continue;
                }
                Err(error) => error,
            };
            drop(rebuild);
            failures += 1;
            tracing::warn!(cache = self.cache.name(), ?error, "the keys cannot be read");
            let wait = match AGAIN.decide(failures, Retry::Outage, fastrand::f64()) {
                Decision::RetryAfter(wait) => wait,
                Decision::GiveUp => AGAIN.delay_max,
            };
            tokio::time::sleep(wait).await;
        }
    }
}

impl<K, V, F, Fut> Component for FilterKeeper<K, V, F>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<K>, Status>> + Send,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn stage(&self) -> Stage {
        Stage::Consume
    }

    async fn run(self, shutdown: Shutdown) -> Result<(), BoxError> {
        match self.cache.filter() {
            Some(filter) => drop(shutdown.unless_draining(self.run_forever(filter)).await),
            None => shutdown.draining().await,
        }
        Ok(())
    }
}

impl<K: Hash + Eq, V, F> std::fmt::Debug for FilterKeeper<K, V, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FilterKeeper").field("name", &self.name).finish_non_exhaustive()
    }
}
