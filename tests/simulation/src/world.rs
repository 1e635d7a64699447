//! One run: nodes, clients and faults for a while, then healing, then the questions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Clock, Context, ShutdownHandle, Timestamp};
use antiphon_outbox::{CommitError, OutboxStore};
use antiphon_saga::{SagaFilter, SagaStore};
use bytes::Bytes;
use fastrand::Rng;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::contract::{OrderPlaced, PlaceOrder};
use crate::faults::{Bites, Faults, Rates};
use crate::node::{self, Front, Fronts, Outside};
use crate::shop::{STOCK, add};
use crate::{Mutant, check};

/// When all begins.
const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);
/// How long things go wrong.
const TROUBLE: Duration = Duration::from_secs(14);
/// How long clients keep coming.
const CLIENTS: Duration = Duration::from_secs(5);
/// How long everything may take to come to rest afterwards.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the drain of a node may take.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// What a client knows of its order in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It was accepted.
    Accepted,
    /// It certainly was not.
    Absent,
    /// Nobody told it.
    Unknown,
}

/// The orders, and what their clients know.
pub(crate) type Log = Arc<Mutex<BTreeMap<String, Known>>>;

/// Runs one seed.
///
/// # Errors
/// The first promise that was broken.
pub(crate) async fn run(seed: u64, mutant: Option<Mutant>) -> Result<Bites, String> {
    let mut rng = Rng::with_seed(seed);
    let faults = Faults::new(Rates::draw(&mut rng), rng.fork());
    let clock = Clock::ticking(START);
    let outside = Arc::new(Outside::new(Arc::clone(&faults), clock, mutant));
    stock_up(&outside).await.map_err(|error| error.to_string())?;

    let (handle, end) = ShutdownHandle::new();
    let count = rng.usize(2..4);
    let fronts: Fronts = Arc::new(Mutex::new(vec![None; count]));
    let mut nodes = JoinSet::new();
    for number in 0..count {
        let (outside, fronts) = (Arc::clone(&outside), Arc::clone(&fronts));
        nodes.spawn(node::run(number, outside, fronts, end.clone()));
    }
    let log = Log::default();
    let mut clients = JoinSet::new();
    for number in 0..rng.u32(4..8) {
        let declined = if rng.u32(0..5) == 0 { "-declined" } else { "" };
        let client = Client {
            order: format!("order-{number}{declined}"),
            quantity: rng.i64(1..4),
            waits: rng.u32(0..10) < 8,
            cancels: rng.u32(0..10) < 2,
            begins: Duration::from_millis(rng.u64(0..CLIENTS.as_millis() as u64)),
            rng: rng.fork(),
            fronts: Arc::clone(&fronts),
        };
        clients.spawn(client.run(Arc::clone(&log)));
    }

    tokio::time::sleep(TROUBLE).await;
    faults.heal();
    let rested = timeout(PATIENCE, come_to_rest(&outside, &mut clients)).await;
    if let Some(ended) = nodes.try_join_next() {
        return Err(format!("a node ended: {ended:?}"));
    }
    if rested.is_err() {
        return Err(check::what_moves(&outside).await);
    }
    faults.seal();
    handle.drain(DRAIN);
    // The drain itself is bounded; that it is kept to is what is asked here.
    loop {
        match timeout(2 * DRAIN, nodes.join_next()).await {
            Ok(None) => break,
            Ok(Some(Ok(Ok(())))) => {}
            other => return Err(format!("a node did not drain: {other:?}")),
        }
    }
    let log = log.lock().clone();
    check::everything(&outside, &log).await?;
    Ok(faults.bites())
}

async fn stock_up(outside: &Outside) -> Result<(), CommitError> {
    use antiphon_outbox::Store;
    let store = &outside.inventory.store;
    let mut connection = store.begin().await.map_err(CommitError::RolledBack)?;
    add(&mut connection, "stock", "on-hand", STOCK).await.map_err(CommitError::RolledBack)?;
    store.commit(connection).await
}

/// Waits until all clients know, all sagas have ended, all outboxes are empty, and nothing has
/// changed for a while.
async fn come_to_rest(outside: &Outside, clients: &mut JoinSet<()>) {
    while clients.join_next().await.is_some() {}
    let mut quiet = 0;
    while quiet < 6 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        quiet = if is_at_rest(outside).await { quiet + 1 } else { 0 };
    }
}

pub(crate) async fn is_at_rest(outside: &Outside) -> bool {
    for service in outside.services() {
        if !matches!(service.store.backlog().await, Ok((0, _))) {
            return false;
        }
    }
    let sagas = outside.orders.store.list(&SagaFilter::default(), u32::MAX).await;
    sagas.is_ok_and(|sagas| sagas.iter().all(|saga| saga.state.is_ended()))
}

/// Somebody who wants something.
struct Client {
    order: String,
    quantity: i64,
    /// Whether it asks until it is told, or only once.
    waits: bool,
    cancels: bool,
    begins: Duration,
    rng: Rng,
    fronts: Fronts,
}

impl Client {
    async fn run(mut self, log: Log) {
        tokio::time::sleep(self.begins).await;
        let context = Context::root();
        let mut known = Known::Absent;
        loop {
            let attempt = context.clone().scope(self.attempt()).await;
            known = match (known, attempt) {
                (_, Known::Accepted) => Known::Accepted,
                (Known::Unknown, _) | (_, Known::Unknown) => Known::Unknown,
                _ => Known::Absent,
            };
            log.lock().insert(self.order.clone(), known);
            if known == Known::Accepted || !self.waits {
                break;
            }
            tokio::time::sleep(Duration::from_millis(self.rng.u64(50..800))).await;
        }
        if self.cancels {
            tokio::time::sleep(Duration::from_millis(self.rng.u64(0..2_000))).await;
            let _ = timeout(Duration::from_secs(2), self.cancel()).await;
        }
    }

    fn front(&mut self) -> Option<Front> {
        let fronts = self.fronts.lock();
        let open: Vec<&Front> = fronts.iter().flatten().collect();
        if open.is_empty() { None } else { Some(open[self.rng.usize(0..open.len())].clone()) }
    }

    /// Asks once.
    async fn attempt(&mut self) -> Known {
        let Some(front) = self.front() else { return Known::Absent };
        match timeout(Duration::from_secs(3), self.place(&front)).await {
            Ok(Ok(())) => Known::Accepted,
            Ok(Err(CommitError::RolledBack(_))) => Known::Absent,
            Ok(Err(_)) | Err(_) => Known::Unknown,
        }
    }

    async fn place(&self, front: &Front) -> Result<(), CommitError> {
        let mut tx = front.database.begin().await.map_err(CommitError::RolledBack)?;
        let known =
            tx.get_for_update("orders", &self.order).await.map_err(CommitError::RolledBack)?;
        if known.is_some() {
            return Ok(());
        }
        let row = Bytes::from(Context::current().trace().trace_id.to_string());
        tx.put("orders", &self.order, row).await.map_err(CommitError::RolledBack)?;
        tx.emit(&OrderPlaced::of(&self.order, 1));
        let data = PlaceOrder::of(&self.order, self.quantity);
        front
            .place_order
            .start(&mut tx, &self.order, &data)
            .await
            .map_err(CommitError::RolledBack)?;
        tx.commit().await
    }

    async fn cancel(&mut self) -> Option<()> {
        let front = self.front()?;
        let mut tx = front.database.begin().await.ok()?;
        front.operator.cancel_within(&mut tx, "place-order", &self.order).await.ok()?;
        tx.commit().await.ok()
    }
}
