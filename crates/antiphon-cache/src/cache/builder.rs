//! Making a cache.

use std::fmt::{self, Display};
use std::hash::Hash;
use std::str::FromStr;
use std::sync::Arc;

use antiphon_config::Mistake;
use antiphon_telemetry::Telemetry;
use moka::notification::RemovalCause;
use tokio::sync::Semaphore;

use super::soon::Pending;
use super::{Cache, Entry, Inner, Weigh};
use crate::codec::Codec;
use crate::filter::KeyFilter;
use crate::flight::Flights;
use crate::freshness::Windows;
use crate::metrics::Metrics;
use crate::settings::CacheSettings;
use crate::shared::{Listener, SharedLevel, Typed};

/// A cache that is being made. Got from [`Cache::builder`].
#[must_use = "there is no cache until it is built"]
pub struct Builder<K, V> {
    name: String,
    settings: CacheSettings,
    weigh: Weigh<K, V>,
    shared: Option<Typed<K, V>>,
}

impl<K, V> Builder<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    pub(super) fn new(name: String) -> Self {
        Self { name, settings: CacheSettings::default(), weigh: None, shared: None }
    }

    /// With these settings instead of the defaults.
    pub fn settings(mut self, settings: CacheSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Says how many bytes an entry counts against `bytes_max`. Without it an entry counts the length
    /// of its encoded value where there is a shared level, and else its share of `bytes_max`: then
    /// `capacity` alone decides.
    pub fn weigh(mut self, bytes: impl Fn(&K, &V) -> usize + Send + Sync + 'static) -> Self {
        self.weigh = Some(Box::new(bytes));
        self
    }

    /// With a level behind the one in memory that processes share.
    ///
    /// A key becomes text, and the text that other processes send becomes a key again; two keys must
    /// not have the same text.
    pub fn shared(mut self, level: Arc<dyn SharedLevel>, codec: impl Codec<V>) -> Self
    where
        K: Display + FromStr,
    {
        self.shared = Some(Typed::new(level, codec));
        self
    }

    /// The cache, with its metrics registered.
    ///
    /// # Errors
    /// The settings make no sense, or the name: it is a part of keys of the shared level, and ends there
    /// at a colon.
    pub fn build(self, telemetry: &Telemetry) -> Result<Cache<K, V>, Mistake> {
        let Self { name, settings, weigh, shared } = self;
        settings.check()?;
        if name.is_empty() || name.contains(|c: char| c == ':' || c.is_control()) {
            return Err(Mistake::new("name", format!("`{name}` is no name of a cache")));
        }
        let metrics = Metrics::of(telemetry, &name);
        let evictions = metrics.evictions.clone();
        let memory = moka::sync::Cache::builder()
            .max_capacity(u64::try_from(settings.bytes_max.0).unwrap_or(u64::MAX))
            .weigher(|_: &K, entry: &Entry<V>| entry.weight)
            // Nothing is served by this clock: it only keeps what nobody asks for any more from
            // filling the memory.
            .time_to_live(settings.kept_max())
            .eviction_listener(move |_, _, cause| {
                if cause == RemovalCause::Size {
                    evictions.inc();
                }
            })
            .build();
        let filter = (settings.filter_keys > 0).then(|| {
            let age_max = settings.filter_age_max.0;
            // The level says when this process hears of the changes of others.
            let deaf = shared.is_some();
            KeyFilter::new(settings.filter_keys, settings.filter_false_rate, age_max, deaf)
        });
        let inner = Arc::new(Inner {
            windows: Windows::of(&settings),
            weight_min: settings.weight_min(),
            loads: Semaphore::new(settings.loads_max.min(Semaphore::MAX_PERMITS)),
            pending: Pending::default(),
            flights: Arc::new(Flights::new()),
            name,
            settings,
            memory,
            filter,
            shared,
            weigh,
            metrics,
        });
        if let Some(shared) = &inner.shared {
            let listener: Arc<dyn Listener> = Arc::<Inner<K, V>>::clone(&inner);
            shared.listen(&inner.name, Arc::downgrade(&listener));
        }
        Ok(Cache(inner))
    }
}

impl<K, V> fmt::Debug for Builder<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("name", &self.name)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
