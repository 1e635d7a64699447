//! Limits on how often methods are called, as the settings say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use antiphon_resilience::{KeyedRateLimit, RateLimit, RateSettings};
use tokio::time::Instant;

use super::admission::Client;
use super::methods::procedure;
use crate::service::{MethodInfo, Service};

/// Clients that are kept apart by one limit; all others together are one more.
const CLIENTS_MAX: usize = 100_000;

/// How often a method, or all methods of a service together, may be called.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateRule {
    /// The rate, and how many calls may come at once.
    pub rate: RateSettings,
    /// Whether each client has the rate for itself, or all have it together.
    pub per_client: bool,
}

/// The name of a rate limit is none of a method or service.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is a rate limit for {name}, which this server does not have; name a service \
     (package.Service) or a method (package.Service/Method) out of: {services}"
)]
pub struct NothingToLimit {
    name: String,
    services: String,
}

/// A limit with what it has let in.
#[derive(Debug)]
pub(super) enum Rate {
    Together(RateLimit),
    PerClient(Box<KeyedRateLimit>),
}

impl Rate {
    fn new(rule: RateRule, now: Instant) -> Self {
        if rule.per_client {
            Self::PerClient(Box::new(KeyedRateLimit::new(rule.rate, CLIENTS_MAX, now)))
        } else {
            Self::Together(RateLimit::new(rule.rate, now))
        }
    }

    /// Lets a call in, or tells when to come again.
    pub(super) fn check(&self, client: Client<'_>, now: Instant) -> Result<(), Duration> {
        match self {
            Self::Together(limit) => limit.check(now),
            Self::PerClient(limit) => limit.check(client, now),
        }
    }
}

/// The limits of a server by their names.
#[derive(Debug, Default)]
pub(super) struct Rates(BTreeMap<String, Arc<Rate>>);

impl Rates {
    pub(super) fn new(
        rules: &BTreeMap<String, RateRule>,
        services: &[Arc<dyn Service>],
        now: Instant,
    ) -> Result<Self, NothingToLimit> {
        for name in rules.keys() {
            let is_there = |service: &Arc<dyn Service>| {
                let mut methods = service.info().methods.iter();
                service.info().name == name || methods.any(|one| procedure(one.path) == name)
            };
            if !services.iter().any(is_there) {
                let names = services.iter().map(|service| service.info().name);
                let services = names.collect::<Vec<_>>().join(", ");
                return Err(NothingToLimit { name: name.clone(), services });
            }
        }
        let limits = rules.iter().map(|(name, rule)| (name.clone(), Rate::new(*rule, now).into()));
        Ok(Self(limits.collect()))
    }

    /// Those that hold for a method: its own, and that of its service.
    pub(super) fn of(&self, method: &MethodInfo) -> Vec<Arc<Rate>> {
        let names = [procedure(method.path), method.service];
        names.into_iter().filter_map(|name| self.0.get(name).cloned()).collect()
    }
}
