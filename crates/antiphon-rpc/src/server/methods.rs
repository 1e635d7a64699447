//! The methods that a server answers, by their path, with their limits.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use antiphon_resilience::{AdaptiveLimit, CpuGuard, Fairness};
use tokio::time::Instant;

use super::metrics::{MethodMetrics, ServerMetrics};
use super::rates::{Rate, RateLimitError, Rates};
use super::settings::ServerSettings;
use crate::service::{MethodInfo, MethodKind, Service};

/// A method with what is kept for it: who answers it, its instruments and its limit.
pub struct Method {
    /// The service.
    pub service: Arc<dyn Service>,
    /// The place of the method in the service.
    pub index: usize,
    /// What the contract says of it.
    pub info: &'static MethodInfo,
    pub(super) metrics: MethodMetrics,
    /// How often it may be called.
    pub(super) rates: Vec<Arc<Rate>>,
    /// Only unary methods: the time a stream is open says nothing about load.
    pub(super) limits: Option<Limits>,
    /// The calls in progress of each client.
    pub(super) fairness: Option<Fairness>,
    /// Health and reflection are answered whatever the load.
    pub(super) exempt: bool,
}

/// How many calls of a method may be in progress, learnt from those that were.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) concurrency: AdaptiveLimit,
    pub(super) cpu: CpuGuard,
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Method({})", self.info.path)
    }
}

impl Method {
    /// Records the adaptive limit, if there is one.
    pub(super) fn note_limit(&self) {
        if let Some(limits) = &self.limits {
            self.metrics.limit(limits.concurrency.limit());
        }
    }
}

/// The path without the slash in front: `package.Service/Method`.
pub(super) fn procedure(path: &str) -> &str {
    path.strip_prefix('/').unwrap_or(path)
}

/// Every method by its [`procedure`].
#[derive(Debug, Default)]
pub(super) struct Methods(HashMap<&'static str, Arc<Method>>);

/// Why services cannot be served as they are.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    /// Two services have the same name.
    #[error("the service {0} is served twice; give each service to the server once")]
    ServedTwice(&'static str),
    /// A rate limit cannot be kept.
    #[error(transparent)]
    RateLimit(#[from] RateLimitError),
}

impl Methods {
    pub(super) fn new(
        services: &[Arc<dyn Service>],
        settings: &ServerSettings,
        metrics: &ServerMetrics,
    ) -> Result<Self, ServicesError> {
        let now = Instant::now();
        let (rules, sharing) = (&settings.rate_limits, settings.rate_sharing.as_ref());
        let rates = Rates::new(rules, sharing, services, metrics, now)?;
        let mut by_path = HashMap::new();
        for service in services {
            let exempt = service.info().name.starts_with("grpc.");
            for (index, info) in service.info().methods.iter().enumerate() {
                let limited = info.kind == MethodKind::Unary && !exempt;
                let method = Method {
                    service: Arc::clone(service),
                    index,
                    info,
                    metrics: metrics.method(procedure(info.path)),
                    rates: rates.of(info),
                    limits: limited.then(|| Limits {
                        concurrency: AdaptiveLimit::new(settings.concurrency),
                        cpu: CpuGuard::new(now),
                    }),
                    fairness: (settings.fair_shares && !exempt).then(|| Fairness::new(now)),
                    exempt,
                };
                if by_path.insert(procedure(info.path), Arc::new(method)).is_some() {
                    return Err(ServicesError::ServedTwice(service.info().name));
                }
            }
        }
        Ok(Self(by_path))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Method>> {
        self.0.values()
    }

    pub(super) fn get(&self, path: &str) -> Option<&Arc<Method>> {
        self.0.get(procedure(path))
    }
}
