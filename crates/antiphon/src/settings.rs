//! The sections of `antiphon.toml` that the facade reads, and what they become.

mod broker;
mod database;
mod location;
mod server;

use std::collections::BTreeMap;

use antiphon_config::{ByteSize, HumanDuration, Settings};
use antiphon_rpc::client::ClientSettings;
use antiphon_telemetry::TelemetrySettings;
use antiphon_telemetry::admin::AdminSettings;
use serde::{Deserialize, Serialize};

pub(crate) use broker::{BrokerSection, Carrier};
pub use database::DatabaseSettings;
pub(crate) use location::{Location, scheme};
pub(crate) use server::ServerSection;

/// All sections of the framework.
#[derive(Clone, Debug)]
pub(crate) struct Sections {
    pub(crate) server: ServerSection,
    pub(crate) admin: AdminSettings,
    pub(crate) database: DatabaseSettings,
    pub(crate) broker: BrokerSection,
    pub(crate) client: ClientSection,
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
            client: settings.section("client")?,
            shutdown: settings.section("shutdown")?,
            telemetry: settings.section("telemetry")?,
        })
    }
}

/// `[client]`: calling other services.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ClientSection {
    /// Targets by the full name of the service.
    pub(crate) targets: BTreeMap<String, String>,
    connect_timeout: HumanDuration,
    timeout: HumanDuration,
    keep_alive_interval: HumanDuration,
    keep_alive_timeout: HumanDuration,
    resolve_interval: HumanDuration,
    message_max: ByteSize,
}

impl Default for ClientSection {
    fn default() -> Self {
        let own = ClientSettings::default();
        Self {
            targets: BTreeMap::new(),
            connect_timeout: HumanDuration(own.connect_timeout),
            timeout: HumanDuration(own.timeout),
            keep_alive_interval: HumanDuration(own.keep_alive_interval),
            keep_alive_timeout: HumanDuration(own.keep_alive_timeout),
            resolve_interval: HumanDuration(own.resolve_interval),
            message_max: ByteSize(own.message_bytes_max),
        }
    }
}

impl From<&ClientSection> for ClientSettings {
    fn from(section: &ClientSection) -> Self {
        Self {
            connect_timeout: section.connect_timeout.0,
            timeout: section.timeout.0,
            keep_alive_interval: section.keep_alive_interval.0,
            keep_alive_timeout: section.keep_alive_timeout.0,
            resolve_interval: section.resolve_interval.0,
            message_bytes_max: section.message_max.0,
        }
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
