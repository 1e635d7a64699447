//! What goes wrong, when: drawn from the seed, one draw per effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use antiphon_testing::memory_store::{Fault, Hook, Point};
use fastrand::Rng;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Chances, in one of ten thousand, that a single effect goes wrong in a way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    /// The store refuses a call as busy, or fails without effect.
    pub(crate) refused: u32,
    /// The answer of the store is lost, with or without effect.
    pub(crate) lost: u32,
    /// The answer of a commit is lost, with or without effect.
    pub(crate) commit_lost: u32,
    /// A call takes seconds.
    pub(crate) slow: u32,
    /// The whole node stands still for longer than its leases last.
    pub(crate) frozen: u32,
    /// The node ends, before or after the effect.
    pub(crate) crash: u32,
    /// The broker does not take a batch, or not all of it.
    pub(crate) publish_refused: u32,
    /// The confirmation of a batch is lost, with or without effect.
    pub(crate) publish_lost: u32,
    /// The broker delivers a message again, later.
    pub(crate) duplicated: u32,
    /// A batch arrives late, and in another order of its keys.
    pub(crate) delayed: u32,
    /// A subscription ends.
    pub(crate) source_lost: u32,
    /// A settlement gets lost.
    pub(crate) settle_lost: u32,
    /// A handler fails.
    pub(crate) handler_fails: u32,
}

impl Rates {
    /// Each kind of fault is absent, rare or frequent: runs with few kinds go deeper into each
    /// (A. Groce et al., "Swarm testing", 2012).
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let mut rate = |rare: u32, frequent: u32| match rng.u32(0..4) {
            0 | 1 => 0,
            2 => rare,
            _ => frequent,
        };
        Self {
            refused: rate(30, 200),
            lost: rate(30, 150),
            commit_lost: rate(100, 600),
            slow: rate(10, 60),
            frozen: rate(3, 12),
            crash: rate(5, 25),
            publish_refused: rate(100, 800),
            publish_lost: rate(100, 800),
            duplicated: rate(200, 1_500),
            delayed: rate(200, 1_500),
            source_lost: rate(20, 150),
            settle_lost: rate(100, 800),
            handler_fails: rate(200, 1_500),
        }
    }
}

/// How often something went wrong: a run in which nothing did proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bites {
    /// Nodes that ended at an effect.
    pub crashes: u64,
    /// Commits whose outcome the caller was not told.
    pub unknown_commits: u64,
    /// Publications whose outcome the caller was not told.
    pub unknown_publications: u64,
    /// Deliveries of what had been delivered to the group before.
    pub redeliveries: u64,
    /// Deliveries that an inbox recognised.
    pub duplicates_suppressed: u64,
    /// Leases that somebody else had taken when their holder came back.
    pub leases_lost: u64,
    /// Handlers that failed.
    pub handler_failures: u64,
    /// Sagas that turned back.
    pub compensated: u64,
    /// Sagas that went through.
    pub completed: u64,
    /// A hash over all effects and their moments, the final drain left out: what tells one run from
    /// another.
    pub fingerprint: u64,
}

impl Bites {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.crashes += other.crashes;
        self.unknown_commits += other.unknown_commits;
        self.unknown_publications += other.unknown_publications;
        self.redeliveries += other.redeliveries;
        self.duplicates_suppressed += other.duplicates_suppressed;
        self.leases_lost += other.leases_lost;
        self.handler_failures += other.handler_failures;
        self.compensated += other.compensated;
        self.completed += other.completed;
        self.fingerprint = self.fingerprint.rotate_left(1) ^ other.fingerprint;
    }
}

/// The faults of one run.
pub(crate) struct Faults {
    rates: Rates,
    active: AtomicBool,
    healed: Notify,
    sealed: AtomicBool,
    rng: Mutex<Rng>,
    bites: Mutex<Bites>,
    broken: Mutex<Option<String>>,
    begun: Instant,
}

impl Faults {
    pub(crate) fn new(rates: Rates, rng: Rng) -> Arc<Self> {
        Arc::new(Self {
            rates,
            active: AtomicBool::new(true),
            healed: Notify::new(),
            sealed: AtomicBool::new(false),
            rng: Mutex::new(rng),
            bites: Mutex::default(),
            broken: Mutex::default(),
            begun: Instant::now(),
        })
    }

    /// From now on the order of effects is no longer that of the seed: who hears first that a drain
    /// begins is up to the runtime.
    pub(crate) fn seal(&self) {
        self.sealed.store(true, Ordering::Relaxed);
    }

    /// From now on everything works.
    pub(crate) fn heal(&self) {
        self.active.store(false, Ordering::Relaxed);
        self.healed.notify_waiters();
    }

    /// Waits until this moment, or until everything works.
    async fn stand_still(&self, until: Instant) {
        let healed = self.healed.notified();
        if self.is_active() {
            tokio::select! {
                biased;
                () = healed => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Whether a chance of `rate` in ten thousand comes true.
    fn strikes(&self, rate: u32) -> bool {
        rate > 0 && self.is_active() && self.rng.lock().u32(0..10_000) < rate
    }

    pub(crate) fn coin(&self) -> bool {
        self.rng.lock().bool()
    }

    pub(crate) fn millis(&self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.lock().u64(range))
    }

    pub(crate) fn index(&self, count: usize) -> usize {
        self.rng.lock().usize(0..count)
    }

    pub(crate) fn bite(&self, bite: impl FnOnce(&mut Bites)) {
        bite(&mut self.bites.lock());
    }

    pub(crate) fn bites(&self) -> Bites {
        *self.bites.lock()
    }

    /// Takes an effect into the fingerprint (FNV-1a over words).
    fn note(&self, point: Point) {
        if self.sealed.load(Ordering::Relaxed) {
            return;
        }
        let at = self.begun.elapsed().as_nanos() as u64;
        let mut bites = self.bites.lock();
        for word in [point as u64, at] {
            bites.fingerprint = (bites.fingerprint ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// Notes the first promise that was seen broken while running.
    pub(crate) fn broken(&self, what: String) {
        self.broken.lock().get_or_insert(what);
    }

    pub(crate) fn what_is_broken(&self) -> Option<String> {
        self.broken.lock().clone()
    }
}

/// What goes wrong in one life of one node.
pub(crate) struct NodeFaults {
    pub(crate) faults: Arc<Faults>,
    crashed: AtomicBool,
    bell: Notify,
    frozen_until: Mutex<Option<Instant>>,
}

/// What happens at the edge of an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    Goes,
    /// The node ends before the effect.
    StopsBefore,
    /// The node ends after the effect.
    StopsAfter,
}

impl NodeFaults {
    pub(crate) fn new(faults: &Arc<Faults>) -> Arc<Self> {
        Arc::new(Self {
            faults: Arc::clone(faults),
            crashed: AtomicBool::new(false),
            bell: Notify::new(),
            frozen_until: Mutex::default(),
        })
    }

    pub(crate) fn rates(&self) -> Rates {
        self.faults.rates
    }

    pub(crate) fn strikes(&self, rate: u32) -> bool {
        self.faults.strikes(rate)
    }

    pub(crate) fn has_crashed(&self) -> bool {
        self.crashed.load(Ordering::Relaxed)
    }

    /// Waits until the node ends.
    pub(crate) async fn crashed(&self) {
        while !self.has_crashed() {
            self.bell.notified().await;
        }
    }

    fn crash(&self) {
        if !self.crashed.swap(true, Ordering::Relaxed) {
            self.faults.bite(|bites| bites.crashes += 1);
            self.bell.notify_one();
        }
    }

    /// Whether the node gets over the effect that comes now.
    pub(crate) fn edge(&self) -> Edge {
        if self.has_crashed() {
            return Edge::StopsBefore;
        }
        if !self.strikes(self.rates().crash) {
            return Edge::Goes;
        }
        self.crash();
        if self.faults.coin() { Edge::StopsAfter } else { Edge::StopsBefore }
    }

    /// Waits for as long as the node stands still, or the call takes.
    pub(crate) async fn stall(&self) {
        if self.strikes(self.rates().frozen) {
            let until = Instant::now() + self.faults.millis(4_000..9_000);
            *self.frozen_until.lock() = Some(until);
        }
        let frozen_until = *self.frozen_until.lock();
        if let Some(until) = frozen_until {
            self.faults.stand_still(until).await;
        }
        if self.strikes(self.rates().slow) {
            let until = Instant::now() + self.faults.millis(500..5_000);
            self.faults.stand_still(until).await;
        }
    }

    /// A handler is about to work.
    pub(crate) fn handler_fails(&self) -> bool {
        let fails = self.strikes(self.rates().handler_fails);
        if fails {
            self.faults.bite(|bites| bites.handler_failures += 1);
        }
        fails
    }

    fn fault_of(&self, point: Point) -> Fault {
        self.faults.note(point);
        match self.edge() {
            Edge::StopsBefore => return Fault::StopsBefore,
            Edge::StopsAfter => return Fault::StopsAfter,
            Edge::Goes => {}
        }
        let rates = self.rates();
        if point == Point::Commit && self.strikes(rates.commit_lost) {
            self.faults.bite(|bites| bites.unknown_commits += 1);
            return if self.faults.coin() { Fault::LostAfter } else { Fault::LostBefore };
        }
        if self.strikes(rates.refused) {
            return if self.faults.coin() { Fault::Busy } else { Fault::Fails };
        }
        if point != Point::Commit && self.strikes(rates.lost) {
            return if self.faults.coin() { Fault::LostAfter } else { Fault::LostBefore };
        }
        Fault::None
    }
}

/// The store of a node asks here before each call.
pub(crate) struct NodeHook(pub(crate) Arc<NodeFaults>);

impl Hook for NodeHook {
    fn fault(&self, point: Point) -> Fault {
        self.0.fault_of(point)
    }
}
