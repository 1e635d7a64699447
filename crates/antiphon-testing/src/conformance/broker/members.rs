//! Groups and their members.

use std::collections::BTreeSet;
use std::time::Duration;

use antiphon_messaging::{PublishErrorKind, Sent, Start};
use tokio::time::timeout;

use super::{BrokerHarness, QUIET, Site};

/// `Broker` 4: every group gets every message; inside a group each goes to one member.
pub async fn groups_copy_and_members_share(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["one", "two"]).await;
    let mut first = site.join("one", false).await;
    let mut second = site.join("one", false).await;
    let mut other = site.join("two", false).await;
    site.publish_numbered(60).await;
    let texts = if harness.members_own_lanes() {
        // How many each gets is decided by the keys.
        let (one, other) = tokio::join!(first.handle_all(), second.handle_all());
        assert!(!one.is_empty() && !other.is_empty(), "each member gets its share");
        [one, other].concat()
    } else {
        let mut texts = first.handle(20).await;
        texts.extend(second.handle(40).await);
        texts
    };
    assert_eq!(texts.len(), 60);
    assert_eq!(texts.into_iter().collect::<BTreeSet<_>>().len(), 60, "each message once");
    assert_eq!(other.handle(60).await.into_iter().collect::<BTreeSet<_>>().len(), 60);
    first.stays_quiet().await;
    other.stays_quiet().await;
}

/// [`Start`] and `Capabilities::replays`: a new group gets what the broker still has, or only what
/// comes.
pub async fn a_new_group_begins_where_it_says(harness: &impl BrokerHarness) {
    let site = Site::with_ordered_groups(harness, &[]).await;
    let replays = site.broker.capabilities().replays;
    for answer in site.broker.publish(vec![site.message("a", "before")]).await {
        match answer {
            Ok(_receipt) => {}
            // Nobody would ever get it.
            Err(error) => {
                assert_eq!((error.kind, error.sent), (PublishErrorKind::Unroutable, Sent::No));
                assert!(!replays, "what is published before the first group is kept for it");
            }
        }
    }
    site.declare(&["early"], Start::Earliest).await;
    site.declare(&["late"], Start::Latest).await;
    site.publish(&[("a", "after")]).await;
    let mut early = site.join("early", site.ordered).await;
    let mut late = site.join("late", site.ordered).await;
    let expected: &[&str] = if replays { &["before", "after"] } else { &["after"] };
    assert_eq!(early.handle(expected.len()).await, expected);
    assert_eq!(late.handle(1).await, ["after"]);
    early.stays_quiet().await;
    late.stays_quiet().await;
}

/// `Broker` 6: declaring again neither loses nor repeats anything.
pub async fn declaring_again_changes_nothing(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    site.publish_numbered(10).await;
    let mut member = site.join("all", false).await;
    let handled = member.handle(4).await;
    for start in [Start::Earliest, Start::Latest] {
        site.declare(&["all"], start).await;
    }
    let mut texts = member.handle(6).await;
    texts.extend(handled);
    assert_eq!(texts.into_iter().collect::<BTreeSet<_>>().len(), 10);
    member.stays_quiet().await;
}

/// `Broker::subscribe`: a group that nobody declared is an error that names it.
pub async fn an_undeclared_group_cannot_be_joined(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    let answer = site.broker.subscribe(site.subscription("nobody", false)).await;
    let error = answer.err().expect("the group was not declared");
    assert!(error.to_string().contains("nobody"), "{error}");
    assert!(!error.transient, "waiting does not help: {error}");
}

/// `Source` 1: never more than the credits; without credits nothing.
pub async fn a_fetch_yields_at_most_its_credits(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    site.publish_numbered(50).await;
    let mut member = site.join("all", false).await;
    assert!(timeout(QUIET, member.0.fetch(0)).await.is_err(), "nothing comes without credits");
    let mut held = Vec::new();
    for credits in [1, 7, 3] {
        held.extend(member.fetch(credits).await);
    }
    assert!(held.len() <= 11);
    drop(held);
    assert_eq!(member.handle(50).await.into_iter().collect::<BTreeSet<_>>().len(), 50);
}

/// `Source::fetch` is safe to cancel: what was not returned is not fetched.
pub async fn a_fetch_can_be_dropped_without_loss(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    let mut member = site.join("all", false).await;
    let mut texts = BTreeSet::new();
    for n in 0..50_u64 {
        site.publish(&[("", &n.to_string())]).await;
        let impatient = timeout(Duration::from_micros(n * 40), member.0.fetch(8)).await;
        if let Ok(antiphon_messaging::Fetched::Deliveries(deliveries)) = impatient {
            for delivery in deliveries {
                assert!(texts.insert(super::text(&delivery)), "twice without a failure");
                super::ack(delivery).await;
            }
        }
    }
    texts.extend(member.handle(50 - texts.len()).await);
    assert_eq!(texts.len(), 50);
}

/// `Source` 2 and `close`: ten members come and go at once, then everything is handled.
pub async fn concurrent_joining_and_leaving_loses_nothing(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    site.publish_numbered(50).await;
    let churn = (0..10).map(async |n| {
        let mut member = site.join("all", false).await;
        let held = member.0.fetch(5);
        let held = timeout(Duration::from_millis(20), held).await;
        if n % 2 == 0 {
            drop(held);
            let _ = timeout(super::PATIENCE, member.0.close()).await;
        } else {
            drop(member);
        }
    });
    futures_util::future::join_all(churn).await;
    let mut member = site.join("all", false).await;
    assert_eq!(member.handle(50).await.into_iter().collect::<BTreeSet<_>>().len(), 50);
    member.stays_quiet().await;
}
