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
        let server: ServerSection = settings.section("server")?;
        let shutdown: ShutdownSection = settings.section("shutdown")?;
        server.check(shutdown.within).map_err(|mistake| {
            settings.mistaken(&format!("server.{}", mistake.setting()), mistake.problem())
        })?;
        check_inner_urls(settings)?;
        Ok(Self {
            server,
            admin: settings.section("admin")?,
            database: settings.section("database")?,
            broker: settings.section("broker")?,
            caches: Caches::read(settings)?,
            clients: Clients::read(settings)?,
            discovery: settings.section("discovery")?,
            instance: settings.section("instance")?,
            registries: Registries::read(settings)?,
            shutdown,
            telemetry: settings.section("telemetry")?,
        })
    }
}

/// The sections of single technologies. Where those are stands one above.
const INNER: [&str; 7] = [
    "broker.kafka",
    "broker.mqtt",
    "broker.nats",
    "broker.rabbitmq",
    "broker.redis",
    "cache_level.redis",
    "server.shared_rates.redis",
];

/// Refuses an address where nobody looks for it.
fn check_inner_urls(settings: &Settings) -> Result<(), antiphon_config::Error> {
    for section in INNER {
        let path = format!("{section}.url");
        if settings.contains(&path) {
            let outer = section.rsplit_once('.').map_or(section, |(outer, _)| outer);
            return Err(settings.mistaken(&path, &format!("the address stands in `{outer}.url`")));
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use antiphon_config::Sources;

    use super::*;

    fn mistake(text: &str) -> Option<String> {
        let settings = Settings::load(&Sources::new().text("antiphon.toml", text)).unwrap();
        Sections::read(&settings).err().map(|error| error.to_string())
    }

    #[test]
    fn what_makes_no_sense_is_said_with_its_place() {
        assert_eq!(mistake(""), None);
        for (text, words) in [
            ("[server]\nstreams_max = 0", "antiphon.toml:2:15: `server.streams_max`: it must be"),
            ("[server]\ntimeout_default = \"0s\"", "`server.timeout_default`: 0s is less than 1ms"),
            ("[server]\ntimeout_max = \"5s\"", "10s is more than timeout_max, 5s"),
            ("[server]\nlame_duck = \"15s\"", "15s is no less than shutdown.within, 10s"),
        ] {
            let said = mistake(text).expect(text);
            assert!(said.contains(words), "{text}: {said}");
        }
        let patient = "[server]\nlame_duck = \"15s\"\n[shutdown]\nwithin = \"30s\"";
        assert_eq!(mistake(patient), None);
    }

    #[test]
    fn an_address_in_the_section_of_a_technology_is_refused() {
        for section in INNER {
            let said = mistake(&format!("[{section}]\nurl = \"redis://a\"")).expect(section);
            let outer = section.rsplit_once('.').expect("a section of a section").0;
            let words =
                format!("antiphon.toml:2:7: `{section}.url`: the address stands in `{outer}.url`");
            assert!(said.contains(&words), "{said}");
        }
    }
}
