//! What happens when something breaks between the commit and the end of a row.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use antiphon_messaging::PublishErrorKind;
use antiphon_outbox::{CommitError, Database, OutboxStore, RelaySettings};
use antiphon_telemetry::metrics::Exposition;
use antiphon_testing::memory_store::{Fault, Point};

use crate::fixture::{Reaction, World, ms, secs, wait};

#[tokio::test(start_paused = true)]
async fn a_committed_message_is_published_soon_and_removed() {
    let world = World::new();
    let _relay = world.relay();
    wait(secs(1)).await;
    let begun = tokio::time::Instant::now();
    let id = world.emit("orders", "a", "1").await;
    while world.broker.log().is_empty() {
        wait(ms(1)).await;
    }
    assert!(begun.elapsed() < ms(10), "it took {:?}", begun.elapsed());
    assert_eq!(world.broker.log()[0].id, id);
    world.settle().await;
    assert_eq!(world.broker.bodies(), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_committed_is_not_published() {
    let world = World::new();
    let _relay = world.relay();
    let mut tx = world.database.begin().await.unwrap();
    tx.push(world.message("orders", "a", "dropped"));
    drop(tx);
    let refusing = world.store.opened_with(Arc::new(|point| match point {
        Point::Commit => Fault::Fails,
        _ => Fault::None,
    }));
    let mut tx = Database::new("orders", refusing).begin().await.unwrap();
    tx.push(world.message("orders", "a", "refused"));
    assert!(matches!(tx.commit().await, Err(CommitError::RolledBack(_))));
    wait(secs(2)).await;
    assert_eq!(world.broker.bodies(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_commit_is_published_if_it_took_place() {
    for (fault, expected) in [(Fault::LostAfter, vec!["1"]), (Fault::LostBefore, vec![])] {
        let world = World::new();
        let _relay = world.relay();
        let losing = world.store.opened_with(Arc::new(move |point| match point {
            Point::Commit => fault,
            _ => Fault::None,
        }));
        let mut tx = Database::new("orders", losing).begin().await.unwrap();
        tx.push(world.message("orders", "a", "1"));
        assert!(matches!(tx.commit().await, Err(CommitError::Unknown(_))));
        wait(secs(2)).await;
        assert_eq!(world.broker.bodies(), expected, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_committed_before_a_crash_is_published_by_the_next_process() {
    let world = World::new();
    world.emit("orders", "a", "1").await;
    let _relay = world.relay();
    world.settle().await;
    assert_eq!(world.broker.bodies(), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_confirmation_means_the_same_message_again() {
    let world = World::new();
    let mut lost = 3;
    world.broker.react(move |_| {
        lost -= 1;
        if lost > 0 { Reaction::TakeSilently } else { Reaction::Take }
    });
    let _relay = world.relay();
    let id = world.emit("orders", "a", "1").await;
    world.settle().await;
    let ids: Vec<_> = world.broker.log().iter().map(|message| message.id).collect();
    assert_eq!(ids, [id, id, id]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_never_returns_counts_as_unknown() {
    let world = World::new();
    let hung = AtomicBool::new(false);
    world.broker.react(move |_| {
        if hung.swap(true, Ordering::Relaxed) { Reaction::Take } else { Reaction::Hang }
    });
    let _relay = world.relay();
    world.emit("orders", "a", "1").await;
    world.settle().await;
    assert_eq!(world.broker.bodies(), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_confirmation_and_removal_repeats_the_message() {
    let world = World::new();
    let dying = world.store.opened_with(Arc::new(|point| match point {
        Point::Confirm => Fault::StopsBefore,
        _ => Fault::None,
    }));
    let first = world.relay_on(&Database::new("orders", dying), Default::default());
    let id = world.emit("orders", "a", "1").await;
    wait(secs(1)).await;
    assert_eq!(world.broker.log().len(), 1);
    first.task.abort();
    let _second = world.relay();
    world.settle().await;
    let ids: Vec<_> = world.broker.log().iter().map(|message| message.id).collect();
    assert_eq!(ids, [id, id]);
}

#[tokio::test(start_paused = true)]
async fn a_removal_whose_answer_was_lost_is_asked_for_again() {
    let world = World::new();
    let count = AtomicU32::new(0);
    let flaky = world.store.opened_with(Arc::new(move |point| match point {
        Point::Confirm if count.fetch_add(1, Ordering::Relaxed) & 1 == 0 => Fault::LostAfter,
        _ => Fault::None,
    }));
    let database = Database::new("orders", flaky);
    let _relay = world.relay_on(&database, Default::default());
    for n in 0..20 {
        world.emit("orders", "a", &n.to_string()).await;
        wait(ms(30)).await;
    }
    world.settle().await;
    assert_eq!(world.broker.bodies(), (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    let sent = world.store.sent().await.unwrap();
    assert_eq!((sent[0].committed, sent[0].waiting, sent[0].buried), (20, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_removal_is_not_published_again_by_a_read_that_overtook_it() {
    // What a read answers may be removed already when the answer comes.
    let world = World::new();
    let slow = world.store.opened_with(Arc::new(|point| match point {
        Point::Read => Fault::Late(ms(7)),
        _ => Fault::None,
    }));
    // Starts over all the time, so that what is held is read again and again.
    let settings = RelaySettings { sweep_interval: ms(5), ..RelaySettings::default() };
    let _relay = world.relay_on(&Database::new("orders", slow), settings);
    for n in 0..200 {
        world.emit("orders", &format!("k{}", n % 7), &n.to_string()).await;
        wait(ms(3)).await;
    }
    world.settle().await;
    assert_eq!(world.broker.log().len(), 200, "nothing failed, so nothing comes twice");
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_slept_past_its_lease_is_fenced() {
    let world = World::new();
    // The first relay publishes, then sleeps through its lease before it removes the row.
    let asleep = Arc::new(AtomicBool::new(true));
    let sleeping = Arc::clone(&asleep);
    let sleepy = world.store.opened_with(Arc::new(move |point| match point {
        Point::Confirm | Point::Renew if sleeping.load(Ordering::Relaxed) => Fault::Slow(secs(30)),
        _ => Fault::None,
    }));
    let _first = world.relay_on(&Database::new("orders", sleepy), Default::default());
    wait(secs(1)).await;
    world.emit("orders", "a", "1").await;
    wait(ms(500)).await;
    assert_eq!(world.broker.bodies(), ["1"]);
    let _second = world.relay();
    world.settle().await;
    asleep.store(false, Ordering::Relaxed);
    assert_eq!(world.broker.bodies(), ["1", "1"], "the second relay took over");
    wait(secs(40)).await;
    world.emit("orders", "a", "2").await;
    world.settle().await;
    assert_eq!(world.broker.bodies(), ["1", "1", "2"], "only one of them publishes");
    let text = world.telemetry.metrics(Exposition::Prometheus);
    assert!(!text.contains("outbox_lease_losses_total{service=\"orders\"} 0"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn poison_is_put_aside_and_holds_nobody_up() {
    let world = World::new();
    world.broker.react(|message| {
        if message.body.starts_with(b"poison") {
            Reaction::Refuse(PublishErrorKind::TooLarge)
        } else {
            Reaction::Take
        }
    });
    let _relay = world.relay();
    let id = world.emit("orders", "a", "poison").await;
    world.emit("orders", "a", "2").await;
    world.settle().await;
    assert_eq!(world.broker.bodies(), ["2"]);
    let buried = world.store.buried(10).await.unwrap();
    assert_eq!(buried.len(), 1);
    assert_eq!(buried[0].message.id, id);
    assert!(buried[0].reason.contains("TooLarge"), "{}", buried[0].reason);
    let sent = world.store.sent().await.unwrap();
    assert_eq!((sent[0].committed, sent[0].waiting, sent[0].buried), (2, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_now_and_then_delays_but_loses_nothing() {
    let world = World::new();
    let count = AtomicU32::new(0);
    let flaky = world.store.opened_with(Arc::new(move |_| {
        match count.fetch_add(1, Ordering::Relaxed) % 5 {
            1 => Fault::Fails,
            3 => Fault::LostAfter,
            _ => Fault::None,
        }
    }));
    let _relay = world.relay_on(&Database::new("orders", flaky), Default::default());
    for n in 0..50 {
        world.emit("orders", "a", &n.to_string()).await;
        wait(ms(40)).await;
    }
    world.settle().await;
    let mut bodies = world.broker.bodies();
    bodies.dedup();
    assert_eq!(bodies, (0..50).map(|n| n.to_string()).collect::<Vec<_>>());
}
