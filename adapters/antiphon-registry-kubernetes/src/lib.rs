//! Finding instances by the EndpointSlices of Kubernetes.
//!
//! Kubernetes itself registers: a pod that is ready is an instance, by the Service that selects it. So
//! there is a resolver here and no registrar. It lists the slices of a Service and watches them, over
//! the documented HTTP API. `README.md` has the whole mapping.

mod api;
mod resolver;
mod settings;
mod slices;
mod watch;

pub use resolver::KubernetesResolver;
pub use settings::Settings;
