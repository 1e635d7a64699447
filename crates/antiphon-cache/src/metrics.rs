//! What is counted of a cache.

use std::fmt;

use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::{Counter, Family, Gauge, Histogram, Registry, SECONDS};

type Labels<const N: usize> = [(&'static str, String); N];

/// The families of all caches of a process.
#[derive(Clone)]
struct Families {
    requests: Family<Labels<2>, Counter>,
    loads: Family<Labels<2>, Counter>,
    load_duration: Family<Labels<1>, Histogram, fn() -> Histogram>,
    shared: Family<Labels<2>, Counter>,
    invalidations: Family<Labels<1>, Counter>,
    evictions: Family<Labels<1>, Counter>,
    entries: Family<Labels<1>, Gauge>,
}

impl Families {
    fn register(registry: &mut Registry) -> Self {
        let families = Self {
            requests: Family::default(),
            loads: Family::default(),
            load_duration: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            shared: Family::default(),
            invalidations: Family::default(),
            evictions: Family::default(),
            entries: Family::default(),
        };
        registry.register(
            "cache_requests",
            "Lookups, by outcome: hit, negative (known not to exist), stale, filtered (surely does \
             not exist), miss (had to wait for a load), coalesced (waited for the load of another)",
            families.requests.clone(),
        );
        registry.register(
            "cache_loads",
            "Loads from the source, by outcome: found, absent, failed, lost (panicked, or its runtime \
             ended)",
            families.loads.clone(),
        );
        registry.register(
            "cache_load_duration_seconds",
            "How long loads from the source took",
            families.load_duration.clone(),
        );
        registry.register(
            "cache_shared_requests",
            "Questions to the shared level, by outcome: hit, miss, failed, skipped (it is away), \
             refused (a value that was invalidated while it was loaded)",
            families.shared.clone(),
        );
        registry.register(
            "cache_invalidations",
            "Keys invalidated, by this process or another",
            families.invalidations.clone(),
        );
        registry.register(
            "cache_evictions",
            "Entries that were removed from memory to make room",
            families.evictions.clone(),
        );
        registry.register(
            "cache_entries",
            "Entries in memory, as of the last load",
            families.entries.clone(),
        );
        families
    }
}

/// The instruments of one cache.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) hits: Counter,
    pub(crate) negative: Counter,
    pub(crate) stale: Counter,
    pub(crate) filtered: Counter,
    pub(crate) misses: Counter,
    pub(crate) coalesced: Counter,
    pub(crate) found: Counter,
    pub(crate) absent: Counter,
    pub(crate) failed: Counter,
    pub(crate) lost: Counter,
    pub(crate) load_duration: Histogram,
    pub(crate) shared: SharedMetrics,
    pub(crate) invalidations: Counter,
    pub(crate) evictions: Counter,
    pub(crate) entries: Gauge,
}

/// Those of its shared level.
#[derive(Clone)]
pub(crate) struct SharedMetrics {
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) failed: Counter,
    pub(crate) skipped: Counter,
    pub(crate) refused: Counter,
}

impl Metrics {
    /// Those of the cache of this name.
    pub(crate) fn of(telemetry: &Telemetry, cache: &str) -> Self {
        let families = telemetry.instruments(Families::register);
        let name = [("cache", cache.to_owned())];
        let by_outcome = |family: &Family<Labels<2>, Counter>, outcome: &str| {
            family.get_or_create(&[("cache", cache.to_owned()), ("outcome", outcome.to_owned())])
        };
        let (requests, loads, shared) = (&families.requests, &families.loads, &families.shared);
        Self {
            hits: by_outcome(requests, "hit"),
            negative: by_outcome(requests, "negative"),
            stale: by_outcome(requests, "stale"),
            filtered: by_outcome(requests, "filtered"),
            misses: by_outcome(requests, "miss"),
            coalesced: by_outcome(requests, "coalesced"),
            found: by_outcome(loads, "found"),
            absent: by_outcome(loads, "absent"),
            failed: by_outcome(loads, "failed"),
            lost: by_outcome(loads, "lost"),
            load_duration: families.load_duration.get_or_create(&name),
            shared: SharedMetrics {
                hits: by_outcome(shared, "hit"),
                misses: by_outcome(shared, "miss"),
                failed: by_outcome(shared, "failed"),
                skipped: by_outcome(shared, "skipped"),
                refused: by_outcome(shared, "refused"),
            },
            invalidations: families.invalidations.get_or_create(&name),
            evictions: families.evictions.get_or_create(&name),
            entries: families.entries.get_or_create(&name),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
