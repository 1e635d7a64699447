//! What a database needs done now and then: forgetting what is old enough, and reading the ledger.

use std::time::Duration;

use antiphon_core::{BoxError, Component, Shutdown, Stage};
use antiphon_telemetry::Telemetry;

use crate::metrics::LedgerMetrics;
use crate::port::{CallStore, InboxStore, OutboxStore, StoreError};
use crate::tx::Database;

/// How long is remembered what makes repetitions harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How far back the inbox remembers. Messages that are older when they arrive become dead
    /// letters, since nobody can say whether they were handled.
    pub inbox: Duration,
    /// How long the answers of calls with an idempotency key are kept.
    pub calls: Duration,
}

impl Default for Retention {
    /// A week for messages, a day for calls.
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        Self { inbox: 7 * DAY, calls: DAY }
    }
}

/// How often the ledger is read.
const LEDGER_INTERVAL: Duration = Duration::from_secs(10);
/// How often old entries are forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(60);

/// Keeps house in one database. Running it in several processes does no harm.
#[derive(Debug)]
pub struct Housekeeping<S> {
    name: String,
    database: Database<S>,
    retention: Retention,
    metrics: LedgerMetrics,
}

impl<S: OutboxStore + InboxStore + CallStore> Housekeeping<S> {
    /// Keeps house in `database`.
    #[must_use]
    pub fn new(database: &Database<S>, telemetry: &Telemetry) -> Self {
        Self {
            name: format!("housekeeping {}", database.service()),
            metrics: LedgerMetrics::of(telemetry),
            database: database.clone(),
            retention: Retention::default(),
        }
    }

    /// Remembers longer or less long.
    #[must_use]
    pub fn with_retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    async fn forget(&self) -> Result<(), StoreError> {
        let store = self.database.store();
        let now = self.database.now();
        let messages = store.expire(now - self.retention.inbox).await?;
        let calls = store.forget(now - self.retention.calls).await?;
        if messages + calls > 0 {
            tracing::debug!(messages, calls, "forgot what is past the horizon");
        }
        Ok(())
    }

    async fn read_ledger(&self) -> Result<(), StoreError> {
        let store = self.database.store();
        self.metrics.sent(&store.sent().await?);
        self.metrics.handled(&store.handled().await?);
        Ok(())
    }

    async fn run_forever(&self) {
        let mut forget = tokio::time::interval(FORGET_INTERVAL);
        let mut ledger = tokio::time::interval(LEDGER_INTERVAL);
        loop {
            let result = tokio::select! {
                _ = forget.tick() => self.forget().await,
                _ = ledger.tick() => self.read_ledger().await,
            };
            if let Err(error) = result {
                tracing::warn!(%error, "keeping house is put off");
            }
        }
    }
}

impl<S: OutboxStore + InboxStore + CallStore> Component for Housekeeping<S> {
    fn name(&self) -> &str {
        &self.name
    }

    fn stage(&self) -> Stage {
        Stage::Consume
    }

    async fn run(self, shutdown: Shutdown) -> Result<(), BoxError> {
        shutdown.unless_draining(self.run_forever()).await;
        Ok(())
    }
}
