//! The resolver.

use std::sync::Arc;

use antiphon_config::Mistake;
use antiphon_core::BoxFuture;
use antiphon_discovery::{Answers, Instance, RegistryError, Resolver};

use crate::Settings;
use crate::api::Api;
use crate::settings::is_name;
use crate::slices::Port;
use crate::watch::{Name, Slices};

/// Finds the instances of Services. Cheap to clone.
///
/// A name is `service`, `namespace/service`, and either with `:port`, a name or a number; the first
/// port without it.
#[derive(Clone, Debug)]
pub struct KubernetesResolver(Arc<Settings>);

impl KubernetesResolver {
    /// A resolver with these settings. Connects when it is asked something.
    ///
    /// # Errors
    /// The settings make no sense; the error says which.
    pub fn new(settings: Settings) -> Result<Self, Mistake> {
        settings.check()?;
        Ok(Self(Arc::new(settings)))
    }
}

impl Resolver for KubernetesResolver {
    fn watch(&self, name: &str) -> Box<dyn Answers> {
        match parse(name, &self.0.namespace) {
            Ok(name) => Box::new(Slices::new(Api::new(Arc::clone(&self.0)), name)),
            Err(why) => Box::new(Nonsense(format!("`{name}` is no Service of Kubernetes: {why}"))),
        }
    }
}

fn parse(name: &str, namespace: &str) -> Result<Name, &'static str> {
    let (path, port) = match name.rsplit_once(':') {
        None => (name, Port::First),
        Some((_, "")) => return Err("a port is missing after `:`"),
        Some((path, port)) => match port.parse() {
            Ok(0) => return Err("0 is no port"),
            Ok(number) => (path, Port::Number(number)),
            Err(_) => (path, Port::Named(port.to_owned())),
        },
    };
    let (namespace, service) = path.split_once('/').unwrap_or((namespace, path));
    if !is_name(namespace) || !is_name(service) {
        return Err("names are made of lower-case letters, digits, `-` and `.`");
    }
    Ok(Name { namespace: namespace.to_owned(), service: service.to_owned(), port })
}

/// The answers about a name that means nothing.
struct Nonsense(String);

impl Answers for Nonsense {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, RegistryError>> {
        Box::pin(async { Err(RegistryError::invalid(self.0.clone())) })
    }

    fn look_again(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_service_perhaps_with_its_namespace_and_port() {
        let name = |namespace: &str, port| Name {
            namespace: namespace.to_owned(),
            service: "orders".to_owned(),
            port,
        };
        for (text, expected) in [
            ("orders", name("default", Port::First)),
            ("shop/orders", name("shop", Port::First)),
            ("shop/orders:grpc", name("shop", Port::Named("grpc".to_owned()))),
            ("orders:9090", name("default", Port::Number(9_090))),
        ] {
            assert_eq!(parse(text, "default"), Ok(expected));
        }
        for text in ["", "a/b/c", "Orders", "orders:", "orders:0", "/orders", "-a"] {
            assert!(parse(text, "default").is_err(), "{text}");
        }
    }
}
