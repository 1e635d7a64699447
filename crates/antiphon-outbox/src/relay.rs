//! Moves committed messages to the broker.
//!
//! The outbox is divided into lanes; each is leased to one instance, which reads it, publishes what
//! it finds, and removes what the broker has confirmed. The decisions are in `engine`, `lane`,
//! `block` and `verdict`, which know no time but what they are told; `driver` acts.
//!
//! Promise: every committed message is confirmed by the broker at least once. The first deliveries
//! of a key are in the order of the commits, as far as the broker keeps the order of a batch.
//! Repetitions come from lost confirmations, from a crash between confirmation and removal, and
//! from a relay that slept longer than its lease.

mod block;
mod driver;
mod engine;
#[cfg(test)]
mod fixture;
mod lane;
mod settings;
mod verdict;

use std::time::Duration;

use antiphon_core::{BoxError, Component, Shutdown, Stage};
use antiphon_messaging::AnyBroker;
use antiphon_telemetry::Telemetry;

pub use settings::{KeyPolicy, RelaySettings};

use crate::metrics::RelayMetrics;
use crate::port::OutboxStore;
use crate::tx::Database;
use driver::Driver;

/// The scope of the leases on lanes.
const OUTBOX: &str = "outbox";
/// The part of the drain time that is kept for giving the leases back.
const RESERVE: Duration = Duration::from_millis(200);
/// How often the backlog is measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(5);

/// Publishes what is committed to one database. Any number of instances share its lanes.
pub struct Relay<S> {
    name: String,
    database: Database<S>,
    broker: AnyBroker,
    settings: RelaySettings,
    metrics: RelayMetrics,
    telemetry: Telemetry,
}

impl<S: OutboxStore> Relay<S> {
    /// A relay from `database` to `broker`.
    #[must_use]
    pub fn new(database: &Database<S>, broker: AnyBroker, telemetry: &Telemetry) -> Self {
        Self {
            name: format!("relay {}", database.service()),
            metrics: RelayMetrics::of(telemetry, database.service()),
            database: database.clone(),
            broker,
            settings: RelaySettings::default(),
            telemetry: telemetry.clone(),
        }
    }

    /// With other settings.
    #[must_use]
    pub fn with_settings(mut self, settings: RelaySettings) -> Self {
        self.settings = settings;
        self
    }

    async fn measure(&self) {
        let store = self.database.store();
        loop {
            match store.backlog().await {
                Ok((count, oldest)) => {
                    self.metrics.backlog.set(i64::try_from(count).unwrap_or(i64::MAX));
                    let waited = oldest.map_or(Duration::ZERO, |oldest| store.now().since(oldest));
                    self.metrics.oldest.set(waited.as_secs_f64());
                }
                Err(error) => tracing::warn!(%error, "the backlog is not known"),
            }
            tokio::time::sleep(MEASURE_INTERVAL).await;
        }
    }
}

impl<S: OutboxStore> Component for Relay<S> {
    fn name(&self) -> &str {
        &self.name
    }

    fn stage(&self) -> Stage {
        Stage::Relay
    }

    async fn run(self, shutdown: Shutdown) -> Result<(), BoxError> {
        let driver = Driver {
            store: self.database.store().clone(),
            broker: self.broker.clone(),
            settings: self.settings.clone(),
            // Fresh for every start: what an earlier process of this machine held is not ours.
            owner: format!("{}-{}", self.database.service(), uuid::Uuid::new_v4()),
            metrics: self.metrics.clone(),
            telemetry: self.telemetry.clone(),
        };
        tokio::select! {
            biased;
            () = driver.run(self.database.committed(), &shutdown) => Ok(()),
            () = self.measure() => Ok(()),
        }
    }
}

impl<S> std::fmt::Debug for Relay<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay")
            .field("name", &self.name)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
