//! What happens to sagas because time passes: tries again, deadlines, forgetting, counting.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{BoxError, MessageId, Retry, Shutdown};
use antiphon_messaging::{Fail, LANES};
use antiphon_outbox::{InboxStore, Lease, OutboxStore, StoreError};
use futures_util::FutureExt;
use tokio::time::Instant;

use crate::SagaId;
use crate::decide::Input;
use crate::engine::{Engine, NO_DEFINITION};
use crate::port::SagaStore;

/// What the timers' leases are called.
const SCOPE: &str = "saga-timers";
/// How long a lease lasts unless it is renewed.
const LEASE: Duration = Duration::from_secs(6);
/// How often leases are renewed and shared out.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How often it is looked whether a saga is due.
const POLL: Duration = Duration::from_millis(200);
/// How often sagas are counted, and old ones forgotten.
const HOUSEKEEPING: Duration = Duration::from_secs(15);
/// How many due sagas are read at a time.
const DUE_MAX: u32 = 200;
/// How many ended sagas are forgotten at a time.
const FORGET_MAX: u32 = 1_000;

/// See the module.
pub(super) struct Timers<S: OutboxStore> {
    engine: Arc<Engine<S>>,
    retention: Duration,
    /// This instance of the service, new with every start.
    owner: String,
    leases: Vec<Lease>,
}

impl<S: SagaStore + OutboxStore + InboxStore> Timers<S> {
    pub(super) fn new(engine: Arc<Engine<S>>, retention: Duration) -> Self {
        let owner = MessageId::new(engine.database.store().now()).to_string();
        Self { engine, retention, owner, leases: Vec::new() }
    }

    /// Runs until draining begins. Trouble with the store is logged and tried again: leases that
    /// could not be renewed end by themselves.
    pub(super) async fn run(mut self, shutdown: Shutdown) -> Result<(), BoxError> {
        let mut heartbeat = Instant::now();
        let mut housekeeping = heartbeat;
        while !shutdown.is_draining() {
            let now = Instant::now();
            if heartbeat <= now {
                log("sharing the timers", self.share().await);
                heartbeat = now + HEARTBEAT;
            }
            if housekeeping <= now {
                log("counting sagas", self.keep_house().await);
                housekeeping = now + HOUSEKEEPING;
            }
            let found = self.fire(&shutdown).await;
            if !matches!(found, Ok(count) if count == DUE_MAX as usize) {
                log("looking for due sagas", found);
                shutdown.unless_draining(tokio::time::sleep(POLL)).await;
            }
        }
        log("leaving the timers", self.engine.database.store().leave(SCOPE, &self.owner).await);
        Ok(())
    }

    /// Keeps a fair share of the lanes.
    async fn share(&mut self) -> Result<(), StoreError> {
        let store = self.engine.database.store();
        let instances = store.instances(SCOPE, &self.owner, LEASE).await?.max(1);
        let share = LANES.div_ceil(instances);
        self.leases = store.renew(&self.leases, LEASE).await?;
        let held = u32::try_from(self.leases.len()).unwrap_or(u32::MAX);
        if held > share {
            let surplus = self.leases.split_off(usize::try_from(share).unwrap_or(0));
            store.release(&surplus).await?;
        } else if held < share {
            let more = store.acquire(SCOPE, LANES, share - held, &self.owner, LEASE).await?;
            self.leases.extend(more);
        }
        Ok(())
    }

    /// Advances the sagas of the leased lanes that are due, and says how many were found.
    ///
    /// A lease only spares work: two instances that advance one saga are kept apart by its row.
    async fn fire(&self, shutdown: &Shutdown) -> Result<usize, StoreError> {
        let store = self.engine.database.store();
        let now = store.now();
        let live = self.leases.iter().filter(|lease| lease.until > now);
        let lanes: Vec<u32> = live.map(|lease| lease.lane).collect();
        if lanes.is_empty() {
            return Ok(0);
        }
        let due = store.due(&lanes, now, DUE_MAX).await?;
        for id in &due {
            if shutdown.is_draining() {
                break;
            }
            let advance = AssertUnwindSafe(self.engine.advance(*id, &Input::Timer)).catch_unwind();
            match advance.await {
                Ok(Ok(_)) => {}
                Ok(Err(fail)) => self.failed(*id, &fail).await,
                Err(_) => self.failed(*id, &Fail::permanent("its definition panicked")).await,
            }
        }
        Ok(due.len())
    }

    /// A timer that cannot do its work must not go off on every round.
    async fn failed(&self, id: SagaId, fail: &Fail) {
        let hint = fail.hint();
        tracing::warn!(saga = %id, error = %fail, "saga not advanced by its timer");
        let is_foreign = fail.code() == Some(NO_DEFINITION);
        if hint == Retry::Outage && !is_foreign {
            // The store is away, or a reply came in between: the next round finds out.
            return;
        }
        if let Err(fail) = self.engine.postpone(id, hint == Retry::Never).await {
            tracing::warn!(saga = %id, error = %fail, "saga not postponed");
        }
    }

    async fn keep_house(&self) -> Result<(), StoreError> {
        let store = self.engine.database.store();
        self.engine.metrics.live(&self.engine.kinds(), &store.live().await?);
        store.forget_ended(store.now() - self.retention, FORGET_MAX).await?;
        Ok(())
    }
}

fn log<T>(what: &str, outcome: Result<T, StoreError>) {
    if let Err(error) = outcome {
        tracing::warn!(what, %error, "the store of the sagas does not answer");
    }
}
