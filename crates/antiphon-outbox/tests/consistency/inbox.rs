//! What a consumer with a database does with every kind of delivery.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use antiphon_core::Context;
use antiphon_messaging::{Broker, Fail, Message};
use antiphon_outbox::{Handle, Housekeeping, InboxStore, Retention, Tx, handle_fn};
use antiphon_testing::MemoryStore;
use antiphon_testing::memory_store::{Fault, Point};

use crate::fixture::{Awarded, Placed, World, add_one, faults, secs};

type Store = MemoryStore;

/// A handler as a function.
async fn award(placed: Placed, tx: &mut Tx<Store>) -> Result<(), Fail> {
    add_one(tx, placed.text()).await?;
    tx.emit(&Awarded::new(placed.text()));
    Ok(())
}

/// A handler as a value with a state.
struct FailsFirst {
    failures: u32,
    seen: AtomicU32,
}

impl Handle<Placed, Store> for FailsFirst {
    async fn handle(&self, placed: Placed, tx: &mut Tx<Store>) -> Result<(), Fail> {
        add_one(tx, placed.text()).await?;
        tx.emit(&Awarded::new(placed.text()));
        if self.seen.fetch_add(1, Ordering::Relaxed) < self.failures {
            return Err(Fail::retry("not yet"));
        }
        Ok(())
    }
}

async fn count_award(awarded: Awarded, tx: &mut Tx<Store>) -> Result<(), Fail> {
    add_one(tx, &format!("awarded {}", awarded.text())).await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_event_takes_effect_and_causes_the_next_one() {
    let mut world = World::new();
    world.relay();
    world.consume(
        world.database.group("points").on::<Placed>(handle_fn(award)).ordered().concurrency(4),
    );
    world.consume(world.database.group("mail").on::<Awarded>(handle_fn(count_award)));
    world.place("a").await;
    world.until("the award is counted", |world| world.number("awarded a") == 1).await;
    assert_eq!(world.number("a"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_repeated_delivery_is_acknowledged_without_effect() {
    let mut world = World::new();
    world.relay();
    world.consume(world.database.group("points").on::<Placed>(handle_fn(award)));
    world.place("a").await;
    world.until("it took effect", |world| world.number("a") == 1).await;
    let mut tx = world.database.begin().await.unwrap();
    let message = tx.message("orders", "a".into(), &Placed::new("a"));
    let again: Vec<Message> = vec![message.clone(), message.clone(), message];
    tx.push(again[0].clone());
    tx.commit().await.unwrap();
    world.until("the other took effect", |world| world.number("a") == 2).await;
    for answer in world.broker.publish(again).await {
        assert!(answer.is_ok());
    }
    tokio::time::sleep(secs(5)).await;
    assert_eq!(world.number("a"), 2);
    let handled = world.store.handled().await.unwrap();
    assert_eq!((handled[0].done, handled[0].duplicates), (2, 3));
    assert!(world.dead_letters().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failure_undoes_everything_and_is_tried_again() {
    let mut world = World::new();
    world.relay();
    let handler = FailsFirst { failures: 3, seen: AtomicU32::new(0) };
    world.consume(world.database.group("points").on::<Placed>(handler));
    world.consume(world.database.group("mail").on::<Awarded>(handle_fn(count_award)));
    world.place("a").await;
    world.until("it took effect", |world| world.number("awarded a") == 1).await;
    tokio::time::sleep(secs(60)).await;
    assert_eq!((world.number("a"), world.number("awarded a")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_commit_is_found_out_by_the_next_delivery() {
    for fault in [Fault::LostAfter, Fault::LostBefore] {
        let mut world = World::new();
        world.relay();
        // More often than a message may fail: unknown outcomes are not counted as failures.
        let database = world.faulty(faults(move |point, count| match point {
            Point::Commit if count < 20 && (fault == Fault::LostBefore || count == 0) => fault,
            _ => Fault::None,
        }));
        world.consume(database.group("points").on::<Placed>(handle_fn(award)));
        world.place("a").await;
        world.until("it took effect", |world| world.number("a") == 1).await;
        tokio::time::sleep(secs(600)).await;
        assert_eq!(world.number("a"), 1, "{fault:?}");
        assert!(world.dead_letters().await.is_empty(), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_database_that_is_away_kills_no_message() {
    let mut world = World::new();
    world.relay();
    let away = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_away = Arc::clone(&away);
    let database = world.faulty(faults(move |_, _| {
        if is_away.load(Ordering::Relaxed) { Fault::Fails } else { Fault::None }
    }));
    world.consume(database.group("points").on::<Placed>(handle_fn(award)));
    world.place("a").await;
    tokio::time::sleep(secs(3_600)).await;
    assert!(world.dead_letters().await.is_empty());
    away.store(false, Ordering::Relaxed);
    world.until("it took effect", |world| world.number("a") == 1).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_older_than_the_inbox_remembers_becomes_a_dead_letter() {
    let mut world = World::new();
    let retention = Retention { inbox: secs(3_600), calls: secs(3_600) };
    let housekeeping = Housekeeping::new(&world.database, &world.telemetry);
    world.run(housekeeping.with_retention(retention));
    world.place("a").await;
    tokio::time::sleep(secs(2 * 3_600)).await;
    world.relay();
    world.consume(world.database.group("points").on::<Placed>(handle_fn(award)));
    world.place("b").await;
    world.until("the young one took effect", |world| world.number("b") == 1).await;
    tokio::time::sleep(secs(5)).await;
    assert_eq!(world.number("a"), 0);
    let letters = world.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].deaths[0].code, "dedup-horizon");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_cannot_be_read_becomes_a_dead_letter_and_leaves_no_entry() {
    let mut world = World::new();
    world.relay();
    world.consume(world.database.group("points").on::<Placed>(handle_fn(award)));
    let mut tx = world.database.begin().await.unwrap();
    let mut message = tx.message("orders", "a".into(), &Placed::new("a"));
    message.body = bytes::Bytes::from_static(&[0xff, 0xff, 0xff]);
    tx.push(message);
    tx.commit().await.unwrap();
    tokio::time::sleep(secs(5)).await;
    let letters = world.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].deaths[0].code, "decode");
    assert!(world.store.handled().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_emitted_is_caused_by_what_was_handled() {
    let mut world = World::new();
    let seen = Arc::new(parking_lot::Mutex::new(None));
    let saw = Arc::clone(&seen);
    struct Sees(Arc<parking_lot::Mutex<Option<Context>>>);
    impl Handle<Awarded, Store> for Sees {
        async fn handle(&self, _: Awarded, _: &mut Tx<Store>) -> Result<(), Fail> {
            *self.0.lock() = Some(Context::current());
            Ok(())
        }
    }
    world.relay();
    world.consume(world.database.group("points").on::<Placed>(handle_fn(award)).batch(8));
    world.consume(world.database.group("mail").on::<Awarded>(Sees(saw)));
    let context = Context::root().with_correlation_id("order-7");
    let trace = context.trace().trace_id;
    context.scope(world.place("a")).await;
    world.until("it arrived", |_| seen.lock().is_some()).await;
    let context = seen.lock().take().unwrap();
    assert_eq!(context.correlation_id(), "order-7");
    assert_eq!(context.trace().trace_id, trace);
    assert!(context.causation_id().is_some());
}

/// Fails for some texts: `poison` always, `panic` by panicking.
struct Picky;

impl Handle<Placed, Store> for Picky {
    async fn handle(&self, placed: Placed, tx: &mut Tx<Store>) -> Result<(), Fail> {
        add_one(tx, placed.text()).await?;
        match placed.text() {
            "poison" => Err(Fail::permanent("it is poison")),
            "panic" => panic!("as the test wants"),
            "hang" => std::future::pending().await,
            _ => Ok(()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn messages_share_a_transaction_and_a_failing_one_is_handled_alone() {
    let mut world = World::new();
    let begins = Arc::new(AtomicU32::new(0));
    let counts = Arc::clone(&begins);
    let database = world.faulty(faults(move |point, _| {
        if point == Point::Begin {
            counts.fetch_add(1, Ordering::Relaxed);
        }
        Fault::None
    }));
    for n in 0..64 {
        world.place(&format!("k{n}")).await;
    }
    world.relay();
    tokio::time::sleep(secs(1)).await;
    world.consume(database.group("points").on::<Placed>(Picky).ordered().batch(32).concurrency(1));
    world
        .until("all took effect", |world| (0..64).all(|n| world.number(&format!("k{n}")) == 1))
        .await;
    let quiet = begins.load(Ordering::Relaxed);
    assert!(quiet <= 8, "{quiet} transactions for 64 messages");
    for text in ["x0", "poison", "x1", "panic", "x2"] {
        world.place(text).await;
    }
    world
        .until("the good ones took effect", |world| {
            ["x0", "x1", "x2"].iter().all(|text| world.number(text) == 1)
        })
        .await;
    tokio::time::sleep(secs(600)).await;
    assert_eq!((world.number("poison"), world.number("panic")), (0, 0));
    let mut codes: Vec<_> =
        world.dead_letters().await.iter().map(|letter| letter.deaths[0].code.to_string()).collect();
    codes.sort();
    assert_eq!(codes, ["attempts", "permanent"]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_hangs_costs_the_others_of_its_batch_no_attempt() {
    let mut world = World::new();
    let texts = ["x0", "x1", "hang", "x2", "x3"];
    for text in texts {
        world.place(text).await;
    }
    world.relay();
    tokio::time::sleep(secs(1)).await;
    let group = world.database.group("points").on::<Placed>(Picky).batch(8).concurrency(1);
    world.consume(group.timeout(secs(10)));
    world
        .until("the others took effect", |world| {
            texts.iter().all(|text| *text == "hang" || world.number(text) == 1)
        })
        .await;
    tokio::time::sleep(secs(600)).await;
    let letters = world.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].message.key, "hang");
}

#[tokio::test(start_paused = true)]
async fn a_slow_handler_holds_up_no_other_key() {
    struct Slow;
    impl Handle<Placed, Store> for Slow {
        async fn handle(&self, placed: Placed, tx: &mut Tx<Store>) -> Result<(), Fail> {
            if placed.text() == "slow" {
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
            add_one(tx, placed.text()).await?;
            Ok(())
        }
    }
    let mut world = World::new();
    world.relay();
    world.consume(world.database.group("points").on::<Placed>(Slow).ordered().concurrency(2));
    world.place("slow").await;
    world.place("fast").await;
    tokio::time::sleep(secs(2)).await;
    assert_eq!((world.number("slow"), world.number("fast")), (0, 1));
    world.until("the slow one took effect", |world| world.number("slow") == 1).await;
}
