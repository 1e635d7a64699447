//! What every resolver must do that finds what others register: the rules of `Resolver` and `Answers`
//! in `antiphon-discovery`. Registries that are registered at as well have the larger suite
//! [`super::registry`].
//!
//! An adapter writes a [`ResolverHarness`] and one line,
//! [`resolver_conformance!`](crate::resolver_conformance).

use antiphon_discovery::Resolver;
use tokio::time::timeout;

use super::registry::{PATIENCE, Seen};

/// Knows an adapter and what it asks.
pub trait ResolverHarness: Sized + 'static {
    /// What is tested.
    type Resolver: Resolver;

    /// Starts what is asked; it holds nobody.
    fn start() -> impl Future<Output = Self> + Send;

    /// A handle to it.
    fn resolver(&self) -> Self::Resolver;

    /// The name that is watched.
    fn name(&self) -> String;

    /// Makes it hold exactly these instances.
    fn hold(&self, addresses: &[&str]);

    /// Makes every question fail, those in progress included, or work again.
    fn fail(&self, failing: bool);
}

/// Makes a test of every case: `resolver_conformance!(Harness)`. The test crate needs tokio with
/// `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! resolver_conformance {
    ($harness:ty) => {
        $crate::resolver_conformance!(@cases $harness, [
            the_first_answer_is_what_is_held_be_it_nobody,
            changes_are_told_as_whole_sets,
            looking_again_is_answered_though_nothing_changed,
            a_failure_is_an_error_and_nothing_is_missed_after_it,
        ]);
    };
    (@cases $harness:ty, [$($case:ident),* $(,)?]) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::conformance::resolver::$case::<$harness>().await;
            }
        )*
    };
}

/// `Answers` 1 and 2.
pub async fn the_first_answer_is_what_is_held_be_it_nobody<H: ResolverHarness>() {
    let harness = H::start().await;
    let resolver = harness.resolver();
    assert!(Seen::new(&resolver, &harness.name()).next().await.is_empty());
    harness.hold(&["10.0.0.1:8080"]);
    let first = Seen::new(&resolver, &harness.name()).next().await;
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].address.to_string(), "10.0.0.1:8080");
}

/// `Answers` 2.
pub async fn changes_are_told_as_whole_sets<H: ResolverHarness>() {
    let harness = H::start().await;
    let resolver = harness.resolver();
    let mut seen = Seen::new(&resolver, &harness.name());
    seen.until(&[]).await;
    for held in [
        &["10.0.0.1:8080"][..],
        &["10.0.0.1:8080", "10.0.0.2:8080"],
        &["10.0.0.2:8080", "10.0.0.3:8080"],
        &[],
    ] {
        harness.hold(held);
        seen.until(held).await;
    }
}

/// `Answers::look_again`.
pub async fn looking_again_is_answered_though_nothing_changed<H: ResolverHarness>() {
    let harness = H::start().await;
    harness.hold(&["10.0.0.1:8080"]);
    let resolver = harness.resolver();
    let mut seen = Seen::new(&resolver, &harness.name());
    seen.until(&["10.0.0.1:8080"]).await;
    for _ in 0..3 {
        seen.look_again();
        assert_eq!(seen.next().await.len(), 1);
    }
}

/// `Answers` 3 and 4.
pub async fn a_failure_is_an_error_and_nothing_is_missed_after_it<H: ResolverHarness>() {
    let harness = H::start().await;
    harness.hold(&["10.0.0.1:8080"]);
    let resolver = harness.resolver();
    let mut answers = resolver.watch(&harness.name());
    assert_eq!(answers.next().await.expect("an answer").len(), 1);
    harness.fail(true);
    for _ in 0..3 {
        let said = timeout(PATIENCE, answers.next()).await.expect("soon");
        assert!(said.is_err(), "{said:?}");
    }
    harness.hold(&["10.0.0.2:8080"]);
    harness.fail(false);
    let told = timeout(PATIENCE, answers.next()).await.expect("soon").expect("an answer");
    assert_eq!(told[0].address.to_string(), "10.0.0.2:8080");
}
