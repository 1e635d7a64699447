//! The methods that a server answers, by their path.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use antiphon_resilience::AdaptiveLimit;

use super::metrics::{MethodMetrics, ServerMetrics};
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
    /// Only unary methods: the time a stream is open says nothing about load.
    pub(super) limit: Option<AdaptiveLimit>,
    /// Health and reflection are answered whatever the load.
    pub(super) exempt: bool,
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Method({})", self.info.path)
    }
}

/// The path without the slash in front: `package.Service/Method`.
pub(super) fn procedure(path: &str) -> &str {
    path.strip_prefix('/').unwrap_or(path)
}

/// Every method by its [`procedure`].
#[derive(Debug, Default)]
pub(super) struct Methods(HashMap<&'static str, Arc<Method>>);

/// Two services have the same name.
#[derive(Debug, thiserror::Error)]
#[error("the service {0} is served twice; give each service to the server once")]
pub struct ServedTwice(&'static str);

impl Methods {
    pub(super) fn new(
        services: &[Arc<dyn Service>],
        settings: &ServerSettings,
        metrics: &ServerMetrics,
    ) -> Result<Self, ServedTwice> {
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
                    limit: limited.then(|| AdaptiveLimit::new(settings.concurrency)),
                    exempt,
                };
                if by_path.insert(procedure(info.path), Arc::new(method)).is_some() {
                    return Err(ServedTwice(service.info().name));
                }
            }
        }
        Ok(Self(by_path))
    }

    pub(super) fn get(&self, path: &str) -> Option<&Arc<Method>> {
        self.0.get(procedure(path))
    }
}
