//! What can be chosen about discovery.

mod dns;

use antiphon_config::HumanDuration;
use serde::{Deserialize, Serialize};

use crate::keeper;

pub use dns::{DnsSettings, InvalidNameServer, NameServer};

/// How far registries are believed, and how often names are asked for.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The registry of targets that name none, as the scheme of its targets: `orders` is then
    /// `<registry>:///orders`.
    pub registry: Option<String>,
    /// How long a registry must go on saying that a service has no instances before that is believed,
    /// and how long instances have to come back after an outage of the registry.
    pub empty_grace: HumanDuration,
    /// How often an answer that takes away more than half of the instances must be repeated before it
    /// is believed.
    pub confirmations: u32,
    /// The time between such repetitions.
    pub confirm_interval: HumanDuration,
    /// The least time between two questions to the registry that failed connections bring about.
    pub look_interval_min: HumanDuration,
    /// Who is asked for names: `[discovery.dns]`.
    pub dns: DnsSettings,
}

impl Default for Settings {
    fn default() -> Self {
        let keeper = keeper::Settings::default();
        Self {
            registry: None,
            empty_grace: HumanDuration(keeper.empty_grace),
            confirmations: keeper.confirmations,
            confirm_interval: HumanDuration(keeper.confirm_interval),
            look_interval_min: HumanDuration(keeper.look_interval_min),
            dns: DnsSettings::default(),
        }
    }
}

impl Settings {
    pub(crate) fn keeper(&self) -> keeper::Settings {
        keeper::Settings {
            empty_grace: self.empty_grace.0,
            confirmations: self.confirmations,
            confirm_interval: self.confirm_interval.0,
            look_interval_min: self.look_interval_min.0,
        }
    }
}
