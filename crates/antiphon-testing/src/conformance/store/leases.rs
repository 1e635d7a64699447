//! `LeaseStore`: one holder per lane, tokens that never repeat.

use std::collections::BTreeSet;

use antiphon_messaging::LANES;
use antiphon_outbox::{Lease, LeaseStore, Store};

use super::{StoreHarness, TTL, all_lanes};

fn lanes(leases: &[Lease]) -> BTreeSet<u32> {
    leases.iter().map(|lease| lease.lane).collect()
}

async fn acquire<S: LeaseStore>(store: &S, owner: &str, count: u32) -> Vec<Lease> {
    store.acquire("outbox", LANES, count, owner, TTL).await.expect("lanes can be acquired")
}

/// Rule 1, over several processes at once.
pub async fn a_lane_has_one_holder<H: StoreHarness>(harness: &mut H) {
    let mut takers = Vec::new();
    for n in 0..6 {
        let store = harness.open().await;
        takers.push(tokio::spawn(async move { acquire(&store, &format!("o{n}"), 4).await }));
    }
    let mut taken = Vec::new();
    for taker in takers {
        let leases = taker.await.expect("no taker fails");
        assert!(leases.len() <= 4, "at most as many as were asked for");
        taken.extend(leases.into_iter().map(|lease| lease.lane));
    }
    assert_eq!(taken.len(), LANES as usize, "all are taken: {taken:?}");
    assert_eq!(BTreeSet::from_iter(taken).len(), LANES as usize, "none is taken twice");
}

/// Rule 3.
pub async fn a_live_lease_is_nobody_elses<H: StoreHarness>(harness: &mut H) {
    let (one, other) = (harness.open().await, harness.open().await);
    let mut leases = all_lanes(&one, "one").await;
    for _ in 0..4 {
        harness.pass(TTL / 2).await;
        leases = one.renew(&leases, TTL).await.expect("leases can be renewed");
        assert_eq!(leases.len(), LANES as usize, "nobody has taken a lease that was renewed");
        assert!(acquire(&other, "other", LANES).await.is_empty());
    }
}

/// Rule 3.
pub async fn an_expired_lease_can_be_taken_and_the_old_holder_is_told<H: StoreHarness>(
    harness: &mut H,
) {
    let (one, other) = (harness.open().await, harness.open().await);
    let old = all_lanes(&one, "one").await;
    harness.pass(TTL + TTL / 10).await;
    let taken = acquire(&other, "other", 3).await;
    assert_eq!(taken.len(), 3);
    let renewed = one.renew(&old, TTL).await.expect("leases can be renewed");
    assert_eq!(lanes(&renewed).len(), LANES as usize - 3);
    assert!(lanes(&renewed).is_disjoint(&lanes(&taken)), "the lost ones are missing");
    let kept = other.renew(&taken, TTL).await.expect("leases can be renewed");
    assert_eq!(lanes(&kept), lanes(&taken), "the new holder keeps them");
}

/// What `renew` says of an expired lease.
pub async fn an_expired_lease_that_nobody_took_can_be_renewed<H: StoreHarness>(harness: &mut H) {
    let store = harness.open().await;
    let old = all_lanes(&store, "one").await;
    harness.pass(TTL * 2).await;
    let renewed = store.renew(&old, TTL).await.expect("leases can be renewed");
    assert_eq!(lanes(&renewed), lanes(&old));
    assert!(renewed.iter().all(|lease| lease.until > store.now()));
    assert!(acquire(&harness.open().await, "other", LANES).await.is_empty());
}

/// Rule 2.
pub async fn tokens_never_repeat<H: StoreHarness>(harness: &mut H) {
    let mut seen = BTreeSet::new();
    let mut newest = i64::MIN;
    for round in 0..4 {
        let store = harness.open().await;
        for _ in 0..3 {
            let leases = all_lanes(&store, "same owner").await;
            for lease in &leases {
                assert!(seen.insert(lease.token), "token {} was given twice", lease.token);
            }
            let least = leases.iter().map(|lease| lease.token).min().expect("there are leases");
            assert!(least > newest, "tokens grow with every new holder");
            newest = leases.iter().map(|lease| lease.token).max().expect("there are leases");
            store.release(&leases).await.expect("leases can be released");
        }
        if round % 2 == 0 {
            all_lanes(&store, "crashed").await;
            harness.pass(TTL * 2).await;
            newest += i64::from(LANES);
        }
        drop(store);
        harness.restart().await;
    }
}

/// What `release` says of lost leases.
pub async fn releasing_a_lost_lease_changes_nothing<H: StoreHarness>(harness: &mut H) {
    let (one, other) = (harness.open().await, harness.open().await);
    let old = all_lanes(&one, "one").await;
    harness.pass(TTL * 2).await;
    let new = acquire(&other, "other", LANES).await;
    assert_eq!(new.len(), LANES as usize);
    one.release(&old).await.expect("lost leases can be released");
    assert!(acquire(&one, "one", LANES).await.is_empty(), "the new holder still has them");
    let kept = other.renew(&new, TTL).await.expect("leases can be renewed");
    assert_eq!(lanes(&kept), lanes(&new));
}

/// A scope is what a lease is for.
pub async fn scopes_do_not_mix<H: StoreHarness>(harness: &mut H) {
    let store = harness.open().await;
    all_lanes(&store, "one").await;
    let timers = store.acquire("saga-timers", LANES, LANES, "one", TTL).await.expect("acquired");
    assert_eq!(timers.len(), LANES as usize);
    store.leave("saga-timers", "one").await.expect("an owner can leave");
    assert!(acquire(&store, "other", LANES).await.is_empty(), "the outbox is still held");
}

/// Rule 4.
pub async fn instances_are_counted_until_they_leave_or_fall_silent<H: StoreHarness>(
    harness: &mut H,
) {
    let (one, other) = (harness.open().await, harness.open().await);
    let count = async |store: &H::Store, owner: &str| {
        store.instances("outbox", owner, TTL).await.expect("instances can be counted")
    };
    assert_eq!(count(&one, "one").await, 1);
    assert_eq!(count(&one, "one").await, 1, "the same owner counts once");
    assert_eq!(count(&other, "two").await, 2);
    assert_eq!(count(&other, "three").await, 3);
    assert_eq!(other.instances("saga-timers", "two", TTL).await.expect("counted"), 1);
    other.leave("outbox", "two").await.expect("an owner can leave");
    assert_eq!(count(&one, "one").await, 2, "one has left");
    harness.pass(TTL + TTL / 10).await;
    assert_eq!(count(&one, "one").await, 1, "the other has fallen silent");
}

/// What `leave` says.
pub async fn leaving_gives_every_lane_back<H: StoreHarness>(harness: &mut H) {
    let (one, other) = (harness.open().await, harness.open().await);
    let mine = acquire(&one, "one", 10).await;
    let others = acquire(&other, "other", LANES).await;
    assert_eq!((mine.len(), others.len()), (10, 6));
    one.leave("outbox", "one").await.expect("an owner can leave");
    assert_eq!(lanes(&acquire(&other, "other", LANES).await), lanes(&mine), "only its own");
}
