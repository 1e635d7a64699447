//! The sections of `antiphon.toml` that the facade reads, and what they become.

mod broker;
mod cache;
mod client;
mod database;
mod instance;
mod location;

use std::net::SocketAddr;

use antiphon_config::{ByteSize, HumanDuration, Settings};
use antiphon_rpc::server::ServerSettings;
use antiphon_telemetry::TelemetrySettings;
use antiphon_telemetry::admin::AdminSettings;
use serde::{Deserialize, Serialize};

pub(crate) use broker::{BrokerSection, Carrier};
pub(crate) use cache::{Caches, LevelSection};
pub(crate) use client::Clients;
pub use database::DatabaseSettings;
pub(crate) use instance::{InstanceSection, Registries};
pub(crate) use location::{Location, scheme};

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

/// `[server]`: where calls are answered, and the limits.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServerSection {
    pub(crate) listen: SocketAddr,
    workers: usize,
    connections_max: usize,
    connections_per_address_max: usize,
    sniff_timeout: HumanDuration,
    header_timeout: HumanDuration,
    idle_timeout: HumanDuration,
    body_idle_timeout: HumanDuration,
    write_timeout: HumanDuration,
    connection_age_max: HumanDuration,
    connection_age_grace: HumanDuration,
    keep_alive_interval: HumanDuration,
    keep_alive_timeout: HumanDuration,
    header_max: ByteSize,
    body_max: ByteSize,
    message_max: ByteSize,
    streams_max: u32,
    calls_max: usize,
    timeout_default: HumanDuration,
    timeout_max: HumanDuration,
    slow_call: HumanDuration,
    lame_duck: HumanDuration,
    /// The origins whose pages may open WebSockets, besides the server's own.
    websocket_origins: Vec<String>,
}

impl Default for ServerSection {
    fn default() -> Self {
        let own = ServerSettings::default();
        Self {
            listen: own.listen,
            workers: own.workers,
            connections_max: own.connections_max,
            connections_per_address_max: own.connections_per_address_max,
            sniff_timeout: HumanDuration(own.sniff_timeout),
            header_timeout: HumanDuration(own.header_timeout),
            idle_timeout: HumanDuration(own.idle_timeout),
            body_idle_timeout: HumanDuration(own.body_idle_timeout),
            write_timeout: HumanDuration(own.write_timeout),
            connection_age_max: HumanDuration(own.connection_age_max),
            connection_age_grace: HumanDuration(own.connection_age_grace),
            keep_alive_interval: HumanDuration(own.keep_alive_interval),
            keep_alive_timeout: HumanDuration(own.keep_alive_timeout),
            header_max: ByteSize(usize::try_from(own.header_bytes_max).unwrap_or(usize::MAX)),
            body_max: ByteSize(own.body_bytes_max),
            message_max: ByteSize(own.message_bytes_max),
            streams_max: own.streams_max,
            calls_max: own.calls_max,
            timeout_default: HumanDuration(own.timeouts.default),
            timeout_max: HumanDuration(own.timeouts.max),
            slow_call: HumanDuration(own.slow_call),
            lame_duck: HumanDuration(own.lame_duck),
            websocket_origins: own.rest.origins,
        }
    }
}

impl From<&ServerSection> for ServerSettings {
    fn from(section: &ServerSection) -> Self {
        let mut settings = Self {
            listen: section.listen,
            workers: section.workers,
            connections_max: section.connections_max,
            connections_per_address_max: section.connections_per_address_max,
            sniff_timeout: section.sniff_timeout.0,
            header_timeout: section.header_timeout.0,
            idle_timeout: section.idle_timeout.0,
            body_idle_timeout: section.body_idle_timeout.0,
            write_timeout: section.write_timeout.0,
            connection_age_max: section.connection_age_max.0,
            connection_age_grace: section.connection_age_grace.0,
            keep_alive_interval: section.keep_alive_interval.0,
            keep_alive_timeout: section.keep_alive_timeout.0,
            header_bytes_max: u32::try_from(section.header_max.0).unwrap_or(u32::MAX),
            body_bytes_max: section.body_max.0,
            message_bytes_max: section.message_max.0,
            streams_max: section.streams_max,
            calls_max: section.calls_max,
            slow_call: section.slow_call.0,
            lame_duck: section.lame_duck.0,
            ..Self::default()
        };
        settings.timeouts.default = section.timeout_default.0;
        settings.timeouts.max = section.timeout_max.0;
        settings.rest.origins.clone_from(&section.websocket_origins);
        settings
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
