//! Everything at once: random faults at every call of the store, crashes, two processes. At the end
//! the effects are right and the ledger agrees.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use antiphon_core::{Component, Status};
use antiphon_messaging::{AnyBroker, Fail};
use antiphon_outbox::{Database, InboxStore, Ledger, OutboxStore, Relay, Tx, handle_fn};
use antiphon_testing::MemoryStore;
use antiphon_testing::memory_store::{Fault, Hook};
use parking_lot::Mutex;

use crate::fixture::{Awarded, Placed, World, add_one, secs};

const ORDERS: usize = 60;

async fn award(placed: Placed, tx: &mut Tx<MemoryStore>) -> Result<(), Fail> {
    add_one(tx, placed.text()).await?;
    tx.emit(&Awarded::new(placed.text()));
    Ok(())
}

async fn thank(awarded: Awarded, tx: &mut Tx<MemoryStore>) -> Result<(), Fail> {
    add_one(tx, &format!("thanks {}", awarded.text())).await?;
    Ok(())
}

/// Random faults while `raging`.
fn storm(seed: u64, raging: &Arc<AtomicBool>) -> Arc<dyn Hook> {
    let random = Mutex::new(fastrand::Rng::with_seed(seed));
    let raging = Arc::clone(raging);
    Arc::new(move |_| {
        if !raging.load(Ordering::Relaxed) {
            return Fault::None;
        }
        let mut random = random.lock();
        match random.u32(0..100) {
            0..4 => Fault::Busy,
            4..8 => Fault::Fails,
            8..12 => Fault::LostBefore,
            12..16 => Fault::LostAfter,
            16..23 => Fault::Slow(std::time::Duration::from_millis(random.u64(1..50))),
            23..30 => Fault::Late(std::time::Duration::from_millis(random.u64(1..50))),
            30 => Fault::Slow(secs(random.u64(1..10))),
            31 => Fault::StopsBefore,
            32 => Fault::StopsAfter,
            _ => Fault::None,
        }
    })
}

/// One process: a relay and two consumers, on an opening with faults of its own.
fn start(world: &mut World, hook: Arc<dyn Hook>) {
    let database = Database::new("orders", world.store.opened_with(hook));
    let broker = AnyBroker::new(world.broker.clone());
    let relay = Relay::new(&database, broker, &world.telemetry);
    assert_eq!(relay.name(), "relay orders");
    world.run(relay);
    world.consume(database.group("points").on::<Placed>(handle_fn(award)).ordered().concurrency(4));
    world
        .consume(database.group("mail").on::<Awarded>(handle_fn(thank)).batch(8).timeout(secs(15)));
}

async fn place_all(database: &Database<MemoryStore>) -> Vec<Result<(), Status>> {
    let mut answers = Vec::new();
    for n in 0..ORDERS {
        let event = Placed::new(&format!("k{}-{n}", n % 5));
        let event = &event;
        let placed = database.transact(|mut tx| {
            Box::pin(async move {
                tx.emit(event);
                Ok(())
            })
        });
        // A transaction that never ends is a caller that went away.
        let placed = tokio::time::timeout(secs(20), placed).await;
        answers.push(placed.unwrap_or_else(|_| Err(Status::deadline_exceeded())));
    }
    answers
}

#[tokio::test(start_paused = true)]
async fn under_faults_and_crashes_every_committed_event_takes_effect_once() {
    let mut faults_bit = 0;
    for seed in 0..30 {
        let mut world = World::new();
        let raging = Arc::new(AtomicBool::new(true));
        start(&mut world, storm(seed, &raging));
        start(&mut world, storm(seed + 1_000, &raging));
        let caller = Database::new("orders", world.store.opened_with(storm(seed + 2_000, &raging)));
        let answers = place_all(&caller).await;
        // Both processes die and are started again.
        world.crash();
        start(&mut world, storm(seed + 3_000, &raging));
        start(&mut world, storm(seed + 4_000, &raging));
        tokio::time::sleep(secs(60)).await;
        raging.store(false, Ordering::Relaxed);
        world.crash();
        start(&mut world, storm(seed, &raging));
        faults_bit += check(&world, seed, &answers).await;
    }
    assert!(faults_bit > 30, "the faults must have caused repetitions: {faults_bit}");
}

async fn audit(world: &World) -> Ledger {
    let mut ledger = Ledger::new();
    ledger.expect("points", "orders", "test.Placed");
    ledger.expect("mail", "points", "test.Awarded");
    // Consumers first, see the ledger.
    ledger.add_handled(&world.store.handled().await.unwrap());
    for letter in world.dead_letters().await {
        ledger.add_dead(&letter.group, &letter.message.topic, &letter.message.kind, 1);
    }
    ledger.add_sent(&world.store.sent().await.unwrap());
    ledger
}

/// Waits until all is at rest, and answers how many repetitions were suppressed.
async fn check(world: &World, seed: u64, answers: &[Result<(), Status>]) -> u64 {
    let settled = async {
        while !audit(world).await.is_settled() {
            tokio::time::sleep(secs(1)).await;
        }
    };
    if tokio::time::timeout(secs(300), settled).await.is_err() {
        panic!("seed {seed}: {:#?}", audit(world).await.lines());
    }
    let lines = audit(world).await.lines();
    let dead: u64 = lines.iter().map(|line| line.dead).sum();
    for (n, answer) in answers.iter().enumerate() {
        let key = format!("k{}-{n}", n % 5);
        let (effect, thanks) = (world.number(&key), world.number(&format!("thanks {key}")));
        assert!(effect <= 1 && thanks <= effect, "seed {seed}, {key}: {effect} {thanks}");
        if answer.is_ok() && dead == 0 {
            assert_eq!((effect, thanks), (1, 1), "seed {seed}: {key} was accepted");
        }
    }
    assert!(lines.iter().all(|line| line.committed > 0), "seed {seed}: {lines:#?}");
    lines.iter().map(|line| line.duplicates).sum()
}
