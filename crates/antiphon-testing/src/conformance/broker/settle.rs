//! Settling deliveries: rules of [`Settle`](antiphon_messaging::Settle) and
//! [`Source`](antiphon_messaging::Source).

use std::collections::BTreeSet;
use std::time::Duration;

use antiphon_messaging::{Settled, Settlement};
use tokio::time::{Instant, timeout};

use super::{BrokerHarness, PATIENCE, Site, ack, assert_took, settle, text};

/// `Settlement::Retry`: the message comes again after the delay, not before and not much later.
pub async fn a_retry_waits_as_long_as_it_says(harness: &impl BrokerHarness) {
    const DELAY: Duration = Duration::from_secs(1);
    let site = Site::with_groups(harness, &["all"]).await;
    let mut member = site.join("all", false).await;
    site.publish(&[("k", "again")]).await;
    let delivery = member.collect(1).await.remove(0);
    let begun = Instant::now();
    let retry = Settlement::Retry { after: DELAY, attempts: 1 };
    if site.broker.capabilities().retry_delay_max < DELAY {
        let settled = delivery.settle(retry).outcome().await;
        assert_eq!(settled, Settled::Stale, "what the broker cannot do it refuses");
        assert_eq!(member.handle(1).await, ["again"]);
        return;
    }
    settle(delivery, retry).await;
    assert_eq!(member.handle(1).await, ["again"]);
    assert_took(begun, DELAY);
    member.stays_quiet().await;
}

/// `Capabilities::counts_attempts`: `Retry` adds what it says, `Release` adds nothing.
pub async fn attempts_are_counted_as_told(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    if !site.broker.capabilities().counts_attempts {
        return;
    }
    let mut member = site.join("all", false).await;
    site.publish(&[("k", "counted")]).await;
    let after = Duration::ZERO;
    for (settlement, attempt) in [
        (Settlement::Release, 1),
        (Settlement::Retry { after, attempts: 1 }, 1),
        (Settlement::Retry { after, attempts: 3 }, 2),
        (Settlement::Retry { after, attempts: 0 }, 5),
        (Settlement::Release, 5),
        (Settlement::Ack, 5),
    ] {
        let delivery = member.collect(1).await.remove(0);
        assert_eq!(delivery.attempt, attempt, "before {settlement:?}");
        settle(delivery, settlement).await;
    }
    member.stays_quiet().await;
}

/// `Delivery`: dropping one releases it; its attempt does not count.
pub async fn a_dropped_delivery_comes_back(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    let mut member = site.join("all", false).await;
    site.publish(&[("k", "dropped")]).await;
    drop(member.collect(1).await);
    let delivery = member.collect(1).await.remove(0);
    assert_eq!((text(&delivery).as_str(), delivery.attempt), ("dropped", 1));
    ack(delivery).await;
    member.stays_quiet().await;
}

/// `Source` 2 and 5, `Settle` 3: a member that is gone has no say in what others now hold.
pub async fn what_a_lost_member_held_comes_back_and_is_stale_to_it(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    site.publish_numbered(3).await;
    let mut lost = site.join("all", false).await;
    let mut held = lost.collect(3).await;
    drop(lost);
    let mut member = site.join("all", false).await;
    let again = member.collect(3).await;
    let reason =
        antiphon_messaging::DeadReason { code: "permanent", error: "too late".into(), attempts: 1 };
    let retry = Settlement::Retry { after: Duration::ZERO, attempts: 1 };
    for settlement in [Settlement::Ack, retry, Settlement::Dead(reason)] {
        let late = held.remove(0).settle(settlement).outcome();
        let settled = timeout(PATIENCE, late).await.expect("an answer");
        assert_eq!(settled, Settled::Stale);
    }
    for delivery in again {
        ack(delivery).await;
    }
    member.stays_quiet().await;
}

/// `Settle` 2: each settlement is its own. Acknowledging some of a batch, in any order, says nothing
/// about the others.
pub async fn stopping_in_the_middle_of_a_batch_loses_nothing(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    let sent = site.publish_numbered(20).await;
    let mut first = site.join("all", false).await;
    let mut handled = BTreeSet::new();
    for (n, delivery) in first.collect(20).await.into_iter().rev().enumerate() {
        if n % 3 == 0 {
            handled.insert(delivery.message.id);
            ack(delivery).await;
        } else {
            // Held until the member is gone, as if its process had died.
            std::mem::forget(delivery);
        }
    }
    drop(first);
    let mut second = site.join("all", false).await;
    for delivery in second.collect(20 - handled.len()).await {
        assert!(handled.insert(delivery.message.id), "an acknowledged message came again");
        ack(delivery).await;
    }
    assert_eq!(handled, sent.iter().map(|message| message.id).collect());
    second.stays_quiet().await;
}

/// `Source::close`: fetching stops, settling does not, and the end waits for it.
pub async fn what_was_delivered_can_be_settled_while_closing(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    site.publish_numbered(10).await;
    let mut leaving = site.join("all", false).await;
    let held = leaving.collect(4).await;
    let mut closing = leaving.0.close();
    assert!(timeout(super::QUIET, &mut closing).await.is_err(), "closed with deliveries held");
    for delivery in held {
        ack(delivery).await;
    }
    timeout(PATIENCE, closing).await.expect("closes when all is settled");
    let mut member = site.join("all", false).await;
    assert_eq!(member.handle(6).await.len(), 6);
    member.stays_quiet().await;
}
