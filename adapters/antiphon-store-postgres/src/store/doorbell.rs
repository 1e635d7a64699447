//! Telling the relays of other processes that something was committed.
//!
//! `NOTIFY` in a transaction makes all such transactions commit one after the other. So nobody
//! notifies in a transaction: after a commit this process rings, from a connection of its own, at
//! most once in a while, and not at all while it is the only one. A ring may get lost (a broken
//! connection, a pooler that does not carry it); relays look by themselves now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::postgres::PgListener;
use sqlx::{PgPool, Postgres};
use tokio::sync::Notify;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, sleep_until};

use super::time::{MEASURE_INTERVAL, Time};
use crate::connect::within;
use crate::error::store_error;
use crate::pool::Pool;

const CHANNEL: &str = "antiphon_outbox";
/// The least time between two rings.
const RING_INTERVAL: Duration = Duration::from_millis(15);
/// How long the server may take to answer the attendant.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The wait after the connection failed.
const RETRY_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Doorbell {
    /// Who rings; its own rings are not for it.
    own: String,
    /// The attendant has something to do.
    wake: Notify,
    /// Something was committed here.
    committed: AtomicBool,
    /// Something was committed elsewhere.
    changed: Notify,
    /// Somebody wants to know.
    listens: AtomicBool,
    /// Until when no other process is known to want to.
    alone_until: Mutex<Option<Instant>>,
}

impl Doorbell {
    pub(crate) fn new() -> Self {
        Self {
            own: uuid::Uuid::new_v4().simple().to_string(),
            wake: Notify::new(),
            committed: AtomicBool::new(false),
            changed: Notify::new(),
            listens: AtomicBool::new(false),
            alone_until: Mutex::new(None),
        }
    }

    /// Messages were committed by this process.
    pub(crate) fn ring(&self) {
        if self.alone_until.lock().is_some_and(|until| Instant::now() < until) {
            return;
        }
        if !self.committed.swap(true, Ordering::AcqRel) {
            self.wake.notify_one();
        }
    }

    /// Completes when another process has committed messages since it did the last time.
    pub(crate) async fn changed(&self) {
        if !self.listens.swap(true, Ordering::AcqRel) {
            self.wake.notify_one();
        }
        self.changed.notified().await;
    }

    /// Whether this process has the only relay, for the next `ttl`.
    pub(crate) fn is_alone(&self, is_alone: bool, ttl: Duration) {
        let until =
            (is_alone && self.listens.load(Ordering::Acquire)).then(|| Instant::now() + ttl);
        *self.alone_until.lock() = until;
    }
}

/// What works beside the store: rings, listens, and measures the database's clock.
#[derive(Debug)]
pub(super) struct Attendant {
    pub(super) doorbell: Arc<Doorbell>,
    pub(super) time: Arc<Time>,
    pub(super) bookkeeping: Arc<Pool>,
    /// For one connection.
    pub(super) own: PgPool,
}

impl Attendant {
    /// Works for ever; whatever fails is tried again.
    pub(super) async fn run(self) {
        let mut measure = interval_at(Instant::now() + MEASURE_INTERVAL, MEASURE_INTERVAL);
        measure.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let served = match PgListener::connect_with(&self.own).await {
                Ok(listener) => self.serve(listener, &mut measure).await,
                Err(error) => Err(error),
            };
            if let Err(error) = served {
                tracing::debug!(%error, "no wake-up between processes; relays look by themselves");
            }
            sleep(RETRY_WAIT).await;
            // Nobody knows what was missed.
            self.doorbell.changed.notify_one();
        }
    }

    async fn serve(
        &self,
        mut listener: PgListener,
        measure: &mut Interval,
    ) -> Result<(), sqlx::Error> {
        let doorbell = &self.doorbell;
        let mut is_listening = false;
        let mut last_ring: Option<Instant> = None;
        let mut ring_at = doorbell.committed.load(Ordering::Acquire).then(Instant::now);
        loop {
            if !is_listening && doorbell.listens.load(Ordering::Acquire) {
                within(ANSWER_MAX, listener.listen(CHANNEL)).await?;
                is_listening = true;
                doorbell.changed.notify_one();
            }
            tokio::select! {
                () = doorbell.wake.notified() => {
                    if ring_at.is_none() && doorbell.committed.load(Ordering::Acquire) {
                        let now = Instant::now();
                        ring_at = Some(last_ring.map_or(now, |last| last + RING_INTERVAL));
                    }
                }
                () = sleep_until(ring_at.unwrap_or_else(Instant::now)), if ring_at.is_some() => {
                    // Before it: what is committed from now on may miss this ring.
                    doorbell.committed.store(false, Ordering::Release);
                    within(ANSWER_MAX, ring(&mut listener, &doorbell.own)).await?;
                    last_ring = Some(Instant::now());
                    ring_at = None;
                }
                heard = listener.try_recv(), if is_listening => match heard? {
                    Some(ring) if ring.payload() == doorbell.own => {}
                    // Without a ring the connection was lost in between, and rings with it.
                    Some(_) | None => doorbell.changed.notify_one(),
                },
                _ = measure.tick() => {
                    self.measure().await;
                    // A connection that has ended without a word is noticed by asking only.
                    let question = sqlx::query::<Postgres>("SELECT 1").execute(&mut listener);
                    within(ANSWER_MAX, question).await?;
                }
            }
        }
    }

    async fn measure(&self) {
        if !self.time.is_measured() {
            return;
        }
        let measured = match self.bookkeeping.checkout().await {
            Ok(mut turn) => {
                let measured = within(ANSWER_MAX, self.time.measure(&mut turn)).await;
                turn.ended(measured).map_err(store_error("measuring"))
            }
            Err(error) => Err(error),
        };
        if let Err(error) = measured {
            tracing::debug!(%error, "the database's clock was not measured");
        }
    }
}

async fn ring(listener: &mut PgListener, own: &str) -> Result<(), sqlx::Error> {
    sqlx::query::<Postgres>("SELECT pg_notify($1, $2)")
        .bind(CHANNEL)
        .bind(own)
        .execute(listener)
        .await
        .map(drop)
}
