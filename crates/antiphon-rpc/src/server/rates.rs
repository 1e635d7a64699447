//! Limits on how often methods are called, as the settings say.

mod sharing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use antiphon_resilience::{KeyedRateLimit, RateLimit, RateSettings};
use tokio::time::Instant;

use super::admission::Client;
use super::methods::procedure;
use super::metrics::ServerMetrics;
use crate::service::{MethodInfo, Service};
use sharing::{SharedRate, Store};

pub use sharing::RateSharing;
pub(super) use sharing::Waiting;

/// Clients that are kept apart by one limit; all others together are one more.
const CLIENTS_MAX: usize = 100_000;

/// How often a method, or all methods of a service together, may be called.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateRule {
    /// The rate, and how many calls may come at once.
    pub rate: RateSettings,
    /// Whether each client has the rate for itself, or all have it together.
    pub per_client: bool,
    /// Whether all instances have the rate together, or each for itself. Needs
    /// [`ServerSettings::rate_sharing`](super::ServerSettings::rate_sharing).
    pub shared: bool,
}

/// A rate limit cannot be kept as the settings say.
#[derive(Debug, thiserror::Error)]
pub enum RateLimitError {
    /// Its name is none of a method or service.
    #[error(
        "there is a rate limit for {name}, which this server does not have; name a service \
         (package.Service) or a method (package.Service/Method) out of: {services}"
    )]
    NothingToLimit {
        /// What the limit is for.
        name: String,
        /// The services that are served.
        services: String,
    },
    /// It is shared, and nobody says where.
    #[error(
        "server.rate_limits.{name:?}.shared is true, but nothing says where instances share it; set \
         server.shared_rates.url (such as redis://127.0.0.1:6379), or let each instance keep the limit \
         for itself: shared = false"
    )]
    NoStore {
        /// What the limit is for.
        name: String,
    },
}

/// A limit with what it has let in.
#[derive(Debug)]
pub(super) enum Rate {
    Own(OwnRate),
    Shared(Arc<SharedRate>),
}

/// What a limit says to a call.
pub(super) enum Checked {
    In,
    /// When to come again.
    Refused(Duration),
    /// It depends on what the store of shared limits says.
    Waits(Waiting),
}

/// A limit that this instance keeps by itself.
#[derive(Debug)]
pub(super) enum OwnRate {
    Together(RateLimit),
    PerClient(Box<KeyedRateLimit>),
}

impl OwnRate {
    fn new(rule: RateRule, now: Instant) -> Self {
        if rule.per_client {
            Self::PerClient(Box::new(KeyedRateLimit::new(rule.rate, CLIENTS_MAX, now)))
        } else {
            Self::Together(RateLimit::new(rule.rate, now))
        }
    }

    /// Lets a call in, or tells when to come again.
    fn check(&self, client: Client<'_>, now: Instant) -> Result<(), Duration> {
        match self {
            Self::Together(limit) => limit.check(now),
            Self::PerClient(limit) => limit.check(client, now),
        }
    }
}

impl Rate {
    /// Decides about a call, at once where that can be.
    ///
    /// # Panics
    /// Outside of a Tokio runtime, where the limit is shared: the store is asked from a task.
    pub(super) fn check(&self, client: Client<'_>, now: Instant) -> Checked {
        match self {
            Self::Own(limit) => limit.check(client, now).into(),
            Self::Shared(limit) => limit.check(client, now),
        }
    }
}

impl From<Result<(), Duration>> for Checked {
    fn from(said: Result<(), Duration>) -> Self {
        said.map_or_else(Self::Refused, |()| Self::In)
    }
}

/// The limits of a server by their names.
#[derive(Debug, Default)]
pub(super) struct Rates(BTreeMap<String, Arc<Rate>>);

impl Rates {
    pub(super) fn new(
        rules: &BTreeMap<String, RateRule>,
        sharing: Option<&RateSharing>,
        services: &[Arc<dyn Service>],
        metrics: &ServerMetrics,
        now: Instant,
    ) -> Result<Self, RateLimitError> {
        let store = sharing.map(|sharing| Arc::new(Store::new(sharing, metrics, now)));
        let mut limits = BTreeMap::new();
        for (name, rule) in rules {
            let is_there = |service: &Arc<dyn Service>| {
                let mut methods = service.info().methods.iter();
                service.info().name == name || methods.any(|one| procedure(one.path) == name)
            };
            let name = name.clone();
            if !services.iter().any(is_there) {
                let names = services.iter().map(|service| service.info().name);
                let services = names.collect::<Vec<_>>().join(", ");
                return Err(RateLimitError::NothingToLimit { name, services });
            }
            let rate = match (&store, rule.shared) {
                (_, false) => Rate::Own(OwnRate::new(*rule, now)),
                (Some(store), true) => {
                    Rate::Shared(Arc::new(SharedRate::new(&name, *rule, Arc::clone(store), now)))
                }
                (None, true) => return Err(RateLimitError::NoStore { name }),
            };
            limits.insert(name, Arc::new(rate));
        }
        Ok(Self(limits))
    }

    /// Those that hold for a method: its own, and that of its service.
    pub(super) fn of(&self, method: &MethodInfo) -> Vec<Arc<Rate>> {
        let names = [procedure(method.path), method.service];
        names.into_iter().filter_map(|name| self.0.get(name).cloned()).collect()
    }
}
