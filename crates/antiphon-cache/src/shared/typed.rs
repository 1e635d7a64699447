//! The shared level as a cache sees it: typed, bounded in time, and never an error.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use antiphon_core::{BoxError, Status};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::availability::Availability;
use super::{Age, Lease, Listener, Record, SharedLevel};
use crate::codec::Codec;
use crate::freshness::Times;
use crate::metrics::SharedMetrics;

/// How long an invalidation may take. Longer than a read: nothing else makes up for it but the end of
/// the value's time.
const INVALIDATE_TIMEOUT: Duration = Duration::from_secs(2);

/// The level of one cache.
pub(crate) struct Typed<K, V> {
    level: Arc<dyn SharedLevel>,
    codec: Box<dyn Codec<V>>,
    text: fn(&K) -> String,
    key: fn(&str) -> Option<K>,
    availability: Mutex<Availability>,
}

/// What was found of a key.
pub(crate) struct Sighting<V> {
    pub(crate) lease: Lease,
    pub(crate) stored: Option<Seen<V>>,
}

/// A value that was found, or the knowledge that there is none.
pub(crate) struct Seen<V> {
    pub(crate) value: Option<Arc<V>>,
    pub(crate) bytes: usize,
    pub(crate) times: Times,
}

/// Which cache asks, and how.
#[derive(Clone, Copy)]
pub(crate) struct Asking<'a> {
    pub(crate) cache: &'a str,
    pub(crate) timeout: Duration,
    pub(crate) metrics: &'a SharedMetrics,
}

impl<K, V: 'static> Typed<K, V> {
    pub(crate) fn new(level: Arc<dyn SharedLevel>, codec: impl Codec<V>) -> Self
    where
        K: Display + FromStr,
    {
        Self {
            level,
            codec: Box::new(codec),
            text: |key| key.to_string(),
            key: |text| text.parse().ok(),
            availability: Mutex::new(Availability::new(Instant::now())),
        }
    }

    pub(crate) fn listen(&self, cache: &str, listener: Weak<dyn Listener>) {
        self.level.listen(cache, listener);
    }

    /// The key of a text, unless it is none.
    pub(crate) fn key(&self, text: &str) -> Option<K> {
        (self.key)(text)
    }

    /// The bytes of a value, unless it has none.
    pub(crate) fn encode(&self, cache: &str, value: &V) -> Option<Bytes> {
        let encoded = self.codec.encode(value);
        encoded.inspect_err(|error| tracing::warn!(cache, error, "a value cannot be shared")).ok()
    }

    /// Looks a key up; `None` when the level is away.
    pub(crate) async fn read(&self, key: &K, asking: Asking<'_>) -> Option<Sighting<V>> {
        let metrics = asking.metrics;
        let text = (self.text)(key);
        let found = self.bounded(self.level.read(asking.cache, &text), asking).await?;
        let now = Instant::now();
        let stored = match found.stored {
            None => None,
            Some((bytes, age)) => {
                let times = match age {
                    Age::Fresh(left) => Times::fresh_for(left, now),
                    Age::Stale(since) => Times::stale_for(since, now),
                };
                let size = bytes.as_ref().map_or(0, Bytes::len);
                let value = bytes.map(|bytes| self.codec.decode(&bytes).map(Arc::new)).transpose();
                let value = value.inspect_err(|error| {
                    let cache = asking.cache;
                    tracing::debug!(cache, key = text, error, "a shared value cannot be read");
                });
                value.ok().map(|value| Seen { value, bytes: size, times })
            }
        };
        let count = if stored.is_some() { &metrics.hits } else { &metrics.misses };
        count.inc();
        Some(Sighting { lease: found.lease, stored })
    }

    /// Stores what was loaded under this lease.
    pub(crate) async fn fill(&self, key: &K, lease: &Lease, record: Record, asking: Asking<'_>) {
        let text = (self.text)(key);
        let filled = self.level.fill(asking.cache, &text, lease, record);
        if self.bounded(filled, asking).await == Some(false) {
            asking.metrics.refused.inc();
        }
    }

    /// Removes keys for all processes.
    pub(crate) async fn invalidate<'a>(
        &self,
        cache: &str,
        keys: impl Iterator<Item = &'a K>,
    ) -> Result<(), Status>
    where
        K: 'a,
    {
        let texts: Vec<String> = keys.map(self.text).collect();
        // Asked also while the level counts as away: it is what must not be left out.
        let source = match timeout(INVALIDATE_TIMEOUT, self.level.invalidate(cache, &texts)).await {
            Ok(Ok(())) => {
                self.availability.lock().answered();
                return Ok(());
            }
            Ok(Err(error)) => error,
            Err(_) => "it does not answer".into(),
        };
        Err(Status::unavailable("other processes may still have the old value").with_source(source))
    }

    /// Asks the level, unless it is away, and not for long.
    async fn bounded<T>(
        &self,
        answer: impl Future<Output = Result<T, BoxError>>,
        asking: Asking<'_>,
    ) -> Option<T> {
        if !self.availability.lock().ask(Instant::now()) {
            asking.metrics.skipped.inc();
            return None;
        }
        let error = match timeout(asking.timeout, answer).await {
            Ok(Ok(answer)) => {
                self.availability.lock().answered();
                return Some(answer);
            }
            Ok(Err(error)) => error,
            Err(_) => "it does not answer in time".into(),
        };
        asking.metrics.failed.inc();
        if self.availability.lock().failed(Instant::now()) {
            let cache = asking.cache;
            tracing::warn!(cache, error, "the shared level of the cache is away, and left out");
        }
        None
    }
}
