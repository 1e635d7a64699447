//! Getting a value: from the shared level, else from the source; and what becomes of it.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Context, Status};
use antiphon_telemetry::metrics::Counter;
use bytes::Bytes;
use tokio::time::Instant;

use super::{Entry, Inner, Load};
use crate::flight::{Leader, Outcome};
use crate::freshness::{Times, Verdict, jittered};
use crate::shared::{Asking, Lease, Record, Seen};

/// Begins to load, as a task of its own: who wants the value may give up, the load does not.
pub(super) fn start<K, V>(cache: &Arc<Inner<K, V>>, leader: Leader<K, V>, load: Load<V>)
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    let context = Context::current().without_deadline().without_idempotency_key();
    let flight = Flight { cache: Arc::clone(cache), leader };
    tokio::spawn(context.scope(flight.fly(load)));
}

/// One load with all that goes with it.
struct Flight<K: Hash + Eq, V> {
    cache: Arc<Inner<K, V>>,
    leader: Leader<K, V>,
}

impl<K, V> Flight<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    async fn fly(mut self, load: Load<V>) {
        let cache = Arc::clone(&self.cache);
        let (lease, old) = match self.look_in_shared().await {
            Shared::Served => return,
            Shared::Load { lease, old } => (lease, old),
        };
        let permit = match cache.loads.try_acquire() {
            Ok(permit) => Ok(permit),
            // Nobody waits for a value that is renewed in the background, or nobody does any more:
            // then it is not worth standing in the line.
            Err(_) => tokio::select! {
                permit = cache.loads.acquire() => permit,
                () = self.leader.deserted() => return,
            },
        };
        let began = Instant::now();
        let mut unless_ended = Lost(Some(&cache.metrics.lost));
        let context = Context::current().with_deadline(began + cache.settings.load_timeout.0);
        let loaded = context.run(async move { load().await }).await;
        unless_ended.0 = None;
        drop(permit);
        cache.metrics.load_duration.observe(began.elapsed().as_secs_f64());
        match loaded {
            Ok(value) => self.keep(value.map(Arc::new), lease).await,
            Err(status) => self.fail(status, old),
        }
    }

    /// Asks the shared level, if there is one, and serves what it has if that is good enough.
    async fn look_in_shared(&mut self) -> Shared<V> {
        let cache = Arc::clone(&self.cache);
        let key = self.leader.key();
        let sighting = match &cache.shared {
            // What was invalidated here and not yet there is old there.
            Some(shared) if !cache.pending.has(key) => shared.read(key, cache.asking()).await,
            _ => None,
        };
        let Some(sighting) = sighting else { return Shared::Load { lease: None, old: None } };
        let lease = Some(sighting.lease);
        let Some(seen) = sighting.stored else { return Shared::Load { lease, old: None } };
        let weight = cache.weight(key, seen.value.as_deref(), seen.bytes);
        let Seen { value, times, .. } = seen;
        let entry = Entry { value, weight, times };
        let serve = match cache.judge(&entry) {
            Verdict::Fresh => true,
            // Who waits gets it. A load in the background is here to make it new.
            Verdict::Revalidate | Verdict::Stale => self.leader.is_awaited(),
            Verdict::Fallback => false,
            Verdict::Over => return Shared::Load { lease, old: None },
        };
        if serve {
            self.land(Ok(entry.value.clone()), Some(entry));
            return Shared::Served;
        }
        Shared::Load { lease, old: Some(entry) }
    }

    /// Serves what was loaded, and keeps it in both levels.
    async fn keep(mut self, value: Option<Arc<V>>, lease: Option<Lease>) {
        let cache = Arc::clone(&self.cache);
        let settings = &cache.settings;
        let (count, time, stale) = match &value {
            Some(_) => (&cache.metrics.found, settings.ttl.0, settings.stale_max()),
            None => (&cache.metrics.absent, settings.negative_ttl.0, Duration::ZERO),
        };
        count.inc();
        let fresh = jittered(time, fastrand::f64());
        let bytes: Option<Option<Bytes>> = match (&cache.shared, &value) {
            (Some(shared), Some(value)) => shared.encode(&cache.name, value).map(Some),
            (Some(_), None) => Some(None),
            (None, _) => None,
        };
        let size = bytes.iter().flatten().map(Bytes::len).sum();
        let weight = cache.weight(self.leader.key(), value.as_deref(), size);
        let times = Times::fresh_for(fresh, Instant::now());
        let entry = (!fresh.is_zero()).then(|| Entry { value: value.clone(), weight, times });
        let kept = entry.is_some();
        let counts = self.land(Ok(value), entry);
        let (Some(shared), Some(value), Some(lease)) = (&cache.shared, bytes, lease) else {
            return;
        };
        if kept && counts {
            let record = Record { value, fresh, stale };
            shared.fill(self.leader.key(), &lease, record, cache.asking()).await;
        }
    }

    /// Serves an old value if there is one, else the error.
    fn fail(mut self, status: Status, old: Option<Entry<V>>) {
        let cache = Arc::clone(&self.cache);
        cache.metrics.failed.inc();
        let is_good = |entry: &Entry<V>| cache.judge(entry) != Verdict::Over;
        let known = cache.memory.get(self.leader.key()).filter(is_good).or(old.filter(is_good));
        let Some(mut entry) = known else {
            self.land(Err(Arc::new(status)), None);
            return;
        };
        let name = &cache.name;
        tracing::warn!(cache = name, error = ?status, "loading failed, the old value is served");
        entry.times = entry.times.pausing(cache.settings.retry_pause.0, Instant::now());
        self.land(Ok(entry.value.clone()), Some(entry));
    }

    fn land(&mut self, outcome: Outcome<V>, entry: Option<Entry<V>>) -> bool {
        let memory = &self.cache.memory;
        let key = self.leader.key().clone();
        let counts = self.leader.land(outcome, || {
            if let Some(entry) = entry {
                memory.insert(key, entry);
            }
        });
        self.cache.metrics.entries.set(i64::try_from(memory.entry_count()).unwrap_or(i64::MAX));
        counts
    }
}

/// What the shared level made of it.
enum Shared<V> {
    /// It had what is needed.
    Served,
    /// It has to be loaded; this is stored there, but old.
    Load { lease: Option<Lease>, old: Option<Entry<V>> },
}

impl<K, V> Inner<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    fn judge(&self, entry: &Entry<V>) -> Verdict {
        self.windows.judge(entry.times, entry.value.is_some(), Instant::now())
    }

    fn asking(&self) -> Asking<'_> {
        let timeout = self.settings.shared_timeout.0;
        Asking { cache: &self.name, timeout, metrics: &self.metrics.shared }
    }

    fn weight(&self, key: &K, value: Option<&V>, encoded: usize) -> u32 {
        let bytes = match (&self.weigh, value) {
            (Some(weigh), Some(value)) => weigh(key, value),
            _ => encoded,
        };
        u32::try_from(bytes).unwrap_or(u32::MAX).max(self.weight_min)
    }
}

/// Counts a load that is dropped on its way: it panicked, or its runtime ended.
struct Lost<'a>(Option<&'a Counter>);

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        if let Some(lost) = self.0 {
            lost.inc();
        }
    }
}

/// The same failure for one more caller.
pub(super) fn copy(status: Arc<Status>) -> Status {
    let mut copy = Status::new(status.code(), status.message().to_owned())
        .with_reason(status.reason().to_owned(), status.domain().to_owned())
        .with_violations(status.violations().iter().cloned())
        .with_http_status(status.http_status())
        .with_retry(status.retry());
    for (name, value) in status.metadata() {
        copy = copy.with_metadata(name.clone(), value.clone());
    }
    if std::error::Error::source(&*status).is_some() {
        copy.with_source(Cause(status))
    } else {
        copy
    }
}

/// The source of a failure that several callers have.
struct Cause(Arc<Status>);

impl Cause {
    fn get(&self) -> &(dyn std::error::Error + 'static) {
        std::error::Error::source(&*self.0).unwrap_or(&*self.0)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.get(), f)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.get(), f)
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.get().source()
    }
}
