//! Routes of all services together: they share one port.

use std::collections::HashMap;

use super::Errors;
use crate::model::Contract;
use crate::template::Segment;

/// Two routes collide when they have the same method and match the same paths with the same
/// priority, so that a router cannot choose. A path may match several templates otherwise: segment
/// by segment from the left, a literal goes before `*`, and `*` before `**`.
pub(super) fn check(contract: &Contract, errors: &mut Errors) {
    type Key<'a> = (&'a str, &'a [Segment], Option<&'a str>);
    let mut seen: HashMap<Key<'_>, String> = HashMap::new();
    for service in &contract.services {
        for method in &service.methods {
            for binding in &method.bindings {
                let template = &binding.template;
                let key = (binding.method.as_str(), template.segments(), template.verb());
                let called = format!("{}.{}", service.name, method.name);
                if let Some(other) = seen.get(&key) {
                    let message = format!(
                        "the route {} {template} of {called} collides with {other}",
                        binding.method
                    );
                    errors.add(&method.http_at, message);
                } else {
                    let place = &method.http_at;
                    seen.insert(key, format!("{template} of {called} ({place})"));
                }
            }
        }
    }
}
