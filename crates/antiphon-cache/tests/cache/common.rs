//! What the tests share: a source that counts, caches, and their figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use antiphon_cache::{Cache, CacheSettings};
use antiphon_config::HumanDuration;
use antiphon_core::Status;
use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::Exposition;

pub(crate) const NEVER: HumanDuration = HumanDuration(Duration::ZERO);

/// Settings without old values, so that each test asks for what it is about.
pub(crate) fn strict() -> CacheSettings {
    CacheSettings {
        stale_while_revalidate: NEVER,
        stale_if_error: NEVER,
        ..CacheSettings::default()
    }
}

/// A cache of numbers, and where its figures are.
pub(crate) fn cache(settings: CacheSettings) -> (Cache<String, u32>, Telemetry) {
    let telemetry = Telemetry::new();
    let cache = Cache::builder("test").settings(settings).build(&telemetry).expect("a cache");
    (cache, telemetry)
}

/// The value of a line of the metrics, such as `cache_requests_total{cache="test",outcome="hit"}`.
pub(crate) fn figure(telemetry: &Telemetry, name: &str, outcome: &str) -> u64 {
    let labels = if outcome.is_empty() {
        "{cache=\"test\"}".to_owned()
    } else {
        format!("{{cache=\"test\",outcome=\"{outcome}\"}}")
    };
    let text = telemetry.metrics(Exposition::Prometheus);
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}{labels} ")));
    assert!(line.is_some(), "no {name}{labels} in {text}");
    line.unwrap_or_default().parse().expect("a number")
}

/// How many loads were begun.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loads(Arc<AtomicU32>);

impl Loads {
    pub(crate) fn count(&self) -> u32 {
        self.0.load(SeqCst)
    }

    /// Counts one, and yields its number from 1.
    pub(crate) fn next(&self) -> u32 {
        self.0.fetch_add(1, SeqCst) + 1
    }

    /// A load that takes 10 ms of the test's time and yields its number.
    pub(crate) fn number(
        &self,
    ) -> impl FnOnce() -> antiphon_core::BoxFuture<'static, Result<Option<u32>, Status>> + Send + 'static
    {
        let loads = self.clone();
        move || {
            Box::pin(async move {
                let number = loads.next();
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(Some(number))
            })
        }
    }
}
