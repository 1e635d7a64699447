//! What every store of shared rate limits must do: one case per rule of
//! `antiphon_resilience::RateStore`.
//!
//! An adapter implements [`RateStoreHarness`] and adds one line,
//! [`rate_store_conformance!`](crate::rate_store_conformance).

use std::sync::Arc;
use std::time::Duration;

use antiphon_resilience::{RateSettings, RateStore, Taken};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long a case waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// Twenty at once, and no more while a test lasts.
const TWENTY: RateSettings = RateSettings { per_second: 0.001, burst: 20 };

/// Makes a test of every case: `rate_store_conformance!(Harness)`. The test crate needs tokio with its
/// macros.
#[macro_export]
macro_rules! rate_store_conformance {
    ($harness:ty) => {
        $crate::rate_store_conformance!(@cases $harness, [
            together_no_more_is_granted_than_the_burst,
            in_time_no_more_is_granted_than_the_rate,
            a_batch_is_granted_as_far_as_it_fits,
            what_is_refused_is_granted_after_the_wait,
            keys_of_any_bytes_are_apart,
            another_rate_goes_on_from_what_was_used_up,
            what_is_as_good_as_new_is_granted_anew,
            rates_without_sense_grant_next_to_nothing,
        ]);
    };
    (@cases $harness:ty, [$($case:ident),* $(,)?]) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                use $crate::conformance::rate_store::{self, RateStoreHarness};
                let harness = <$harness as RateStoreHarness>::start().await;
                rate_store::$case(&harness).await;
            }
        )*
    };
}

/// Makes stores that nobody else uses.
pub trait RateStoreHarness: Send + Sync {
    /// A store that knows no key.
    fn start() -> impl Future<Output = Self> + Send;

    /// One more instance's way to it, which may not be connected yet.
    fn instance(&self) -> Arc<dyn RateStore>;

    /// Whether the store remembers anything of a key.
    fn remembers(&self, key: &[u8]) -> impl Future<Output = bool> + Send;
}

async fn instance(harness: &impl RateStoreHarness) -> Arc<dyn RateStore> {
    let store = harness.instance();
    let waited = tokio::time::timeout(PATIENCE, async {
        while store.take(b"ready", TWENTY, 0).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "the store does not answer");
    store
}

async fn take(store: &Arc<dyn RateStore>, key: &[u8], rate: RateSettings, wanted: u32) -> Taken {
    store.take(key, rate, wanted).await.expect("an answer")
}

/// Rule 1, at one moment.
pub async fn together_no_more_is_granted_than_the_burst(harness: &impl RateStoreHarness) {
    let stores = [instance(harness).await, instance(harness).await];
    let mut all = JoinSet::new();
    for n in 0..200 {
        let store = Arc::clone(&stores[n % 2]);
        let wanted = u32::try_from(n % 3).expect("a small number");
        all.spawn(async move { take(&store, b"k", TWENTY, wanted).await.granted });
    }
    let granted: u32 = all.join_all().await.into_iter().sum();
    assert_eq!(granted, 20);
}

/// Rule 1, over some time.
pub async fn in_time_no_more_is_granted_than_the_rate(harness: &impl RateStoreHarness) {
    let rate = RateSettings { per_second: 200.0, burst: 10 };
    let stores = [instance(harness).await, instance(harness).await];
    let begun = Instant::now();
    let mut all = JoinSet::new();
    for store in stores {
        all.spawn(async move {
            let mut granted = 0;
            while begun.elapsed() < Duration::from_millis(700) {
                granted += take(&store, b"k", rate, 2).await.granted;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            granted
        });
    }
    let granted: u32 = all.join_all().await.into_iter().sum();
    let took = begun.elapsed().as_secs_f64();
    assert!(f64::from(granted) <= 10.0 + 200.0 * took + 1.0, "{granted} in {took} s");
    assert!(f64::from(granted) >= 10.0 + 200.0 * 0.7 * 0.5, "{granted} in {took} s");
}

/// Rule 2.
pub async fn a_batch_is_granted_as_far_as_it_fits(harness: &impl RateStoreHarness) {
    let store = instance(harness).await;
    let part = take(&store, b"k", TWENTY, 15).await;
    assert_eq!((part.granted, part.wait), (15, Duration::ZERO));
    let rest = take(&store, b"k", TWENTY, 15).await;
    assert_eq!(rest.granted, 5);
    assert!(rest.wait > Duration::from_secs(900), "{:?}", rest.wait);
    let nothing = take(&store, b"k", TWENTY, 1).await;
    assert_eq!(nothing.granted, 0);
    assert!(nothing.wait <= Duration::from_secs(1_000), "{:?}", nothing.wait);
    let all = take(&store, b"other", TWENTY, u32::MAX).await;
    assert_eq!(all.granted, 20);
}

/// The wait is neither too long nor too short.
pub async fn what_is_refused_is_granted_after_the_wait(harness: &impl RateStoreHarness) {
    let store = instance(harness).await;
    let rate = RateSettings { per_second: 5.0, burst: 1 };
    assert_eq!(take(&store, b"k", rate, 1).await.granted, 1);
    let refused = take(&store, b"k", rate, 1).await;
    assert_eq!(refused.granted, 0);
    assert!(refused.wait <= Duration::from_millis(200), "{:?}", refused.wait);
    tokio::time::sleep(refused.wait).await;
    assert_eq!(take(&store, b"k", rate, 1).await.granted, 1);
}

/// Rule 3.
pub async fn keys_of_any_bytes_are_apart(harness: &impl RateStoreHarness) {
    let store = instance(harness).await;
    let every: Vec<u8> = (0..=255).collect();
    for key in [&b"k"[..], b"k ", b"k\0", b"{k}*", b"", &every, &every[1..]] {
        assert_eq!(take(&store, key, TWENTY, 30).await.granted, 20, "{key:?}");
        assert_eq!(take(&store, key, TWENTY, 30).await.granted, 0, "{key:?}");
    }
}

/// Rule 4.
pub async fn another_rate_goes_on_from_what_was_used_up(harness: &impl RateStoreHarness) {
    let store = instance(harness).await;
    let slow = RateSettings { per_second: 1.0, burst: 10 };
    assert_eq!(take(&store, b"k", slow, 10).await.granted, 10);
    // Ten seconds are used up: of the hundred that twenty at this rate would take.
    let other = RateSettings { per_second: 0.2, burst: 20 };
    let granted = take(&store, b"k", other, 20).await.granted;
    assert!((18..=19).contains(&granted), "{granted}");
    // A faster one does not wait for what only the slow one had to.
    let fast = RateSettings { per_second: 100.0, burst: 10 };
    let refused = take(&store, b"k", fast, 1).await;
    assert!(refused.granted == 1 || refused.wait <= Duration::from_millis(10), "{refused:?}");
}

/// Rule 5.
pub async fn what_is_as_good_as_new_is_granted_anew(harness: &impl RateStoreHarness) {
    let store = instance(harness).await;
    let fast = RateSettings { per_second: 100.0, burst: 10 };
    assert_eq!(take(&store, b"k", fast, 10).await.granted, 10);
    assert_eq!(take(&store, b"used", TWENTY, 1).await.granted, 1);
    // What is used up is so for a tenth of a second.
    let waited = tokio::time::timeout(PATIENCE, async {
        while harness.remembers(b"k").await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "the key stays");
    assert!(harness.remembers(b"used").await);
    assert_eq!(take(&store, b"k", fast, 20).await.granted, 10);
    take(&store, b"untouched", fast, 0).await;
    assert!(!harness.remembers(b"untouched").await);
}

/// Settings are checked before; a store must not fall over them all the same.
pub async fn rates_without_sense_grant_next_to_nothing(harness: &impl RateStoreHarness) {
    let store = instance(harness).await;
    for (n, per_second) in [0.0, -1.0, f64::NAN, f64::MIN_POSITIVE].into_iter().enumerate() {
        let key = n.to_string();
        let rate = RateSettings { per_second, burst: 0 };
        assert_eq!(take(&store, key.as_bytes(), rate, 5).await.granted, 1, "{per_second}");
        let second = take(&store, key.as_bytes(), rate, 5).await;
        assert_eq!(second.granted, 0, "{per_second}");
        assert!(second.wait > Duration::from_secs(3_600), "{per_second}: {:?}", second.wait);
        let endless = RateSettings { per_second, burst: u32::MAX };
        let key = format!("endless {n}");
        assert_eq!(take(&store, key.as_bytes(), endless, 7).await.granted, 7, "{per_second}");
    }
}
