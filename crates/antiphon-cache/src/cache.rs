//! The cache: looking up, waiting for a load, invalidating.

mod builder;
mod load;
mod soon;

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use antiphon_core::{BoxFuture, Context, Status};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

pub use builder::Builder;
pub use soon::LastWords;

use crate::filter::KeyFilter;
use crate::flight::{Flights, Joined, Outcome, Progress};
use crate::freshness::{Times, Verdict, Windows};
use crate::metrics::Metrics;
use crate::settings::CacheSettings;
use crate::shared::{Listener, Typed};

/// How many flights may be lost under somebody who waits. The first is the misfortune of another; the
/// second means that loading this key fails in a way that one more attempt does not mend.
const LOST_MAX: u32 = 2;

/// A read-through cache of values by key. Cheap to clone; clones are the same cache.
///
/// See the [crate] for what it promises.
pub struct Cache<K: Hash + Eq, V>(Arc<Inner<K, V>>);

struct Inner<K: Hash + Eq, V> {
    name: String,
    settings: CacheSettings,
    windows: Windows,
    memory: moka::sync::Cache<K, Entry<V>>,
    flights: Arc<Flights<K, V>>,
    filter: Option<KeyFilter<K>>,
    shared: Option<Typed<K, V>>,
    weigh: Weigh<K, V>,
    weight_min: u32,
    loads: Semaphore,
    pending: soon::Pending<K>,
    metrics: Metrics,
}

type Weigh<K, V> = Option<Box<dyn Fn(&K, &V) -> usize + Send + Sync>>;
type Load<V> = Box<dyn FnOnce() -> BoxFuture<'static, Result<Option<V>, Status>> + Send>;

/// What memory keeps of a key: its value, or the knowledge that there is none.
struct Entry<V> {
    value: Option<Arc<V>>,
    weight: u32,
    times: Times,
}

impl<V> Clone for Entry<V> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), weight: self.weight, times: self.times }
    }
}

/// What memory says of a key.
enum Look<V> {
    /// This.
    Serve(Option<Arc<V>>),
    /// This, and load it anew.
    Refresh(Arc<V>),
    Miss,
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// A cache with this name, which is unique in the service: it names its section of the settings,
    /// its metrics and its part of the shared level.
    pub fn builder(name: impl Into<String>) -> Builder<K, V> {
        Builder::new(name.into())
    }

    /// The value of a key; `None` when there is none.
    ///
    /// When it is in neither level, `load` gets it from the source and says `Ok(None)` when there is
    /// none, which is remembered, too. Of all who want a key at the same time one loads it; the others
    /// wait for that, each as long as its own context's deadline lets it. The load is a task of its
    /// own: it goes on when who began it gives up, for the others and for the next, but no longer than
    /// `load_timeout`. It has the context of who began it, without its deadline and idempotency key.
    ///
    /// A `load` must not ask for its own key: it would wait for itself.
    ///
    /// # Errors
    /// What `load` returned, for all who waited for it; it is not remembered, so the next one loads
    /// again. [`Code::DeadlineExceeded`](antiphon_core::Code::DeadlineExceeded) when the deadline of
    /// the caller or `load_timeout` passes, and [`Code::Internal`](antiphon_core::Code::Internal) when
    /// `load` panicked. When there is an old value that may still be served, it is served instead of an
    /// error.
    ///
    /// # Cancel safety
    /// Safe: loads go on without the caller.
    ///
    /// # Panics
    /// Outside a Tokio runtime, when it has to load.
    pub async fn get<Q, L, F>(&self, key: &Q, load: L) -> Result<Option<Arc<V>>, Status>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Option<V>, Status>> + Send + 'static,
    {
        let cache = &self.0;
        match cache.look(key, Instant::now()) {
            Look::Serve(value) => return Ok(value),
            Look::Refresh(value) => {
                self.refresh(&key.to_owned(), boxed(load));
                return Ok(Some(value));
            }
            Look::Miss => {}
        }
        if cache.filter.as_ref().is_some_and(|filter| filter.is_surely_absent(key)) {
            cache.metrics.filtered.inc();
            return Ok(None);
        }
        self.demand(key.to_owned(), boxed(load)).await
    }

    /// The value of a key is not what it was, or the key came to exist or ceased to: forgets it, here
    /// and in the shared level, and has all other processes with that level forget it. What is being
    /// loaded at this moment is not stored by anybody. Adds the key to the filter.
    ///
    /// Call it after the change is committed: what is loaded between an invalidation and its commit is
    /// the old value. A handler of the events that the change emits is the right place, and `?` there
    /// makes sure that it is done in the end:
    ///
    /// ```
    /// # use antiphon_cache::Cache;
    /// # use antiphon_core::Status;
    /// # struct StockChanged { sku: String }
    /// # struct Stock;
    /// async fn on_stock_changed(
    ///     cache: &Cache<String, Stock>,
    ///     event: &StockChanged,
    /// ) -> Result<(), Status> {
    ///     cache.invalidate(&event.sku).await
    /// }
    /// ```
    ///
    /// # Errors
    /// The shared level is away, so others may still have the old value until its time ends; here it is
    /// forgotten, and the shared level hears of it as soon as it is back ([`Self::invalidate_soon`]). [`Code::Unavailable`](antiphon_core::Code::Unavailable), which has a message
    /// delivered again without counting the attempt.
    ///
    /// # Cancel safety
    /// Not safe: it may be forgotten here and not by others, or the other way round, when a reader got
    /// the old value from the shared level meanwhile. Calling it again is right.
    pub async fn invalidate<Q>(&self, key: &Q) -> Result<(), Status>
    where
        K: Borrow<Q>,
        Q: ToOwned<Owned = K> + ?Sized,
    {
        self.invalidate_many([key]).await
    }

    /// [`Self::invalidate`] for several keys at once.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn invalidate_many<'a, Q>(
        &self,
        keys: impl IntoIterator<Item = &'a Q>,
    ) -> Result<(), Status>
    where
        K: Borrow<Q>,
        Q: ToOwned<Owned = K> + ?Sized + 'a,
    {
        let keys: Vec<K> = keys.into_iter().map(ToOwned::to_owned).collect();
        self.0.metrics.invalidations.inc_by(u64::try_from(keys.len()).unwrap_or(u64::MAX));
        keys.iter().for_each(|key| self.0.forget(key));
        let Some(shared) = &self.0.shared else { return Ok(()) };
        let done = shared.invalidate(&self.0.name, keys.iter()).await;
        if done.is_err() {
            self.pend(&keys);
        }
        // Until a moment ago the old value could be read there, and kept here again.
        keys.iter().for_each(|key| self.0.forget(key));
        self.send_soon();
        done
    }

    /// Changes may have been missed: forgets everything in memory, and lets every key pass the filter
    /// until it is built anew. The shared level keeps what it has.
    pub fn forget_all(&self) {
        self.0.forget_all();
    }

    /// Its name, which is that of its section of the settings.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether there is a level behind the memory of this process that others share.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.0.shared.is_some()
    }

    /// The filter of keys that exist, if `filter_keys` asks for one.
    #[must_use]
    pub fn filter(&self) -> Option<&KeyFilter<K>> {
        self.0.filter.as_ref()
    }

    /// How many entries are in memory, about.
    #[must_use]
    pub fn entry_count(&self) -> u64 {
        self.0.memory.entry_count()
    }

    /// Waits for the value of a key, loading it if nobody else does.
    async fn demand(&self, key: K, load: Load<V>) -> Result<Option<Arc<V>>, Status> {
        let deadline = Context::with_current(|context| context.and_then(Context::deadline));
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Status::deadline_exceeded());
        }
        let mut load = Some(load);
        let mut lost = 0;
        loop {
            let ready = || match self.0.look(&key, Instant::now()) {
                Look::Serve(value) => Some(value),
                Look::Refresh(value) => Some(Some(value)),
                Look::Miss => None,
            };
            let receiver = match self.0.flights.join(&key, ready) {
                Joined::Ready(value) => return Ok(value),
                Joined::Waiting(receiver) => {
                    self.0.metrics.coalesced.inc();
                    receiver
                }
                Joined::Leading(leader, receiver) => {
                    let Some(load) = load.take() else { return Err(lost_for_good()) };
                    self.0.metrics.misses.inc();
                    load::start(&self.0, leader, load);
                    receiver
                }
            };
            let landed = landed(receiver);
            let outcome = match deadline {
                None => landed.await,
                Some(deadline) => match tokio::time::timeout_at(deadline, landed).await {
                    Ok(outcome) => outcome,
                    Err(_) => return Err(Status::deadline_exceeded()),
                },
            };
            match outcome {
                Some(outcome) => return outcome.map_err(load::copy),
                None => lost += 1,
            }
            if lost == LOST_MAX {
                return Err(lost_for_good());
            }
        }
    }

    /// Loads a key for whoever comes next, unless that is being done.
    fn refresh(&self, key: &K, load: Load<V>) {
        let now = Instant::now();
        let renewed = || match self.0.memory.get(key) {
            Some(entry) if now < entry.times.load_from => Some(()),
            _ => None,
        };
        if let Joined::Leading(leader, receiver) = self.0.flights.join(key, renewed) {
            // Nobody waits for it.
            drop(receiver);
            load::start(&self.0, leader, load);
        }
    }
}

impl<K, V> Inner<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// What memory says of a key, and counts it.
    fn look<Q>(&self, key: &Q, now: Instant) -> Look<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let Some(Entry { value, times, .. }) = self.memory.get(key) else { return Look::Miss };
        match (self.windows.judge(times, value.is_some(), now), value) {
            (Verdict::Fresh, value) => {
                let negative = value.is_none();
                let count = if negative { &self.metrics.negative } else { &self.metrics.hits };
                count.inc();
                Look::Serve(value)
            }
            (Verdict::Stale, value) => {
                self.metrics.stale.inc();
                Look::Serve(value)
            }
            (Verdict::Revalidate, Some(value)) => {
                self.metrics.stale.inc();
                Look::Refresh(value)
            }
            _ => Look::Miss,
        }
    }

    fn forget(&self, key: &K) {
        // First, or somebody could read in between that it surely does not exist.
        if let Some(filter) = &self.filter {
            filter.add(key);
        }
        self.flights.void(key, || self.memory.invalidate(key));
    }

    fn forget_all(&self) {
        if let Some(filter) = &self.filter {
            filter.open();
        }
        // In this order: what lands in between is not in the table any more.
        self.flights.void_all();
        self.memory.invalidate_all();
    }
}

impl<K, V> Listener for Inner<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    fn changed(&self, key: &str) {
        self.metrics.invalidations.inc();
        match self.shared.as_ref().and_then(|shared| shared.key(key)) {
            Some(key) => self.forget(&key),
            None => {
                tracing::warn!(cache = self.name, key, "a key that another process wrote is none");
                self.forget_all();
            }
        }
    }

    fn deaf(&self) {
        if let Some(filter) = &self.filter {
            filter.set_deaf(true);
        }
    }

    fn missed(&self) {
        self.forget_all();
        if let Some(filter) = &self.filter {
            filter.set_deaf(false);
        }
    }
}

impl<K: Hash + Eq, V> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Hash + Eq, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("name", &self.0.name).finish_non_exhaustive()
    }
}

fn boxed<V, L, F>(load: L) -> Load<V>
where
    L: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<Option<V>, Status>> + Send + 'static,
{
    Box::new(move || Box::pin(load()))
}

/// Waits for the end of a flight; `None` when it is lost.
async fn landed<V>(mut receiver: watch::Receiver<Progress<V>>) -> Option<Outcome<V>> {
    let ended = receiver.wait_for(|progress| !matches!(progress, Progress::Flying)).await;
    match ended.as_deref() {
        Ok(Progress::Landed(outcome)) => Some(outcome.clone()),
        _ => None,
    }
}

fn lost_for_good() -> Status {
    Status::internal("the load of a cached value panicked, or its runtime ended")
}
