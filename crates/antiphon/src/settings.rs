//! The sections of `antiphon.toml` that the facade reads, and what they become.

mod broker;
mod cache;
mod client;
mod database;
mod instance;
mod location;
mod server;

use antiphon_config::{HumanDuration, Settings};
use antiphon_telemetry::TelemetrySettings;
use antiphon_telemetry::admin::AdminSettings;
use serde::{Deserialize, Serialize};

pub(crate) use broker::{BrokerSection, Carrier};
pub(crate) use cache::{Caches, LevelSection};
pub(crate) use client::Clients;
pub use database::DatabaseSettings;
pub(crate) use instance::{InstanceSection, Registries};
pub(crate) use location::{Location, RedisUrl, scheme};
pub(crate) use server::{ServerSection, SharedRatesSection};

/// All sections of the framework.
#[derive(Clone, Debug)]
pub(crate) struct Sections {
    pub(crate) server: ServerSection,
    pub(crate) admin: AdminSettings,
    pub(crate) database: DatabaseSettings,
    pub(crate) broker: BrokerSection,
    pub(crate) caches: Caches,
    pub(crate) clients: Clients,
    pub(crate) discovery: antiphon_discovery::Settings,
    pub(crate) instance: InstanceSection,
    pub(crate) registries: Registries,
    pub(crate) shutdown: ShutdownSection,
    pub(crate) telemetry: TelemetrySettings,
}

impl Sections {
    /// Reads them all, so that a mistake in any of them is found before anything is opened.
    pub(crate) fn read(settings: &Settings) -> Result<Self, antiphon_config::Error> {
        Ok(Self {
            server: settings.section("server")?,
            admin: settings.section("admin")?,
            database: settings.section("database")?,
            broker: settings.section("broker")?,
            caches: Caches::read(settings)?,
            clients: Clients::read(settings)?,
            discovery: settings.section("discovery")?,
            instance: settings.section("instance")?,
            registries: Registries::read(settings)?,
            shutdown: settings.section("shutdown")?,
            telemetry: settings.section("telemetry")?,
        })
    }
}

/// `[shutdown]`: how the process ends.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ShutdownSection {
    /// The time for everything; what is left then is cut.
    pub(crate) within: HumanDuration,
}

impl Default for ShutdownSection {
    fn default() -> Self {
        Self { within: HumanDuration::from_secs(10) }
    }
}
