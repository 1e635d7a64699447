//! EndpointSlices, and the instances in them.

use std::collections::BTreeMap;

use antiphon_discovery::{Authority, Instance, State};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub(crate) struct List {
    pub(crate) metadata: Metadata,
    #[serde(default)]
    pub(crate) items: Vec<Slice>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) resource_version: String,
}

/// One part of the endpoints of a Service: at most a hundred, in one family of addresses.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Slice {
    #[serde(default)]
    pub(crate) metadata: Metadata,
    // Null is an empty list in the answers of Go programs.
    #[serde(default)]
    endpoints: Option<Vec<Endpoint>>,
    #[serde(default)]
    ports: Option<Vec<SlicePort>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Conditions,
    zone: Option<String>,
    node_name: Option<String>,
    target_ref: Option<Reference>,
}

/// `None` means: not said.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Reference {
    #[serde(default)]
    name: String,
}

#[derive(Clone, Debug, Deserialize)]
struct SlicePort {
    name: Option<String>,
    port: Option<u16>,
}

/// Which of a slice's ports is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// The only one, or the first.
    First,
    Named(String),
    Number(u16),
}

impl Conditions {
    /// Whether the endpoint wants calls, as the documentation of EndpointSlices says: `ready` is true
    /// when nothing is said; `serving` is `ready` without regard to the end that has begun.
    fn state(self) -> Option<State> {
        let ready = self.ready.unwrap_or(true);
        let serving = self.serving.unwrap_or(ready);
        let terminating = self.terminating.unwrap_or(false);
        match (ready, serving, terminating) {
            (_, true, true) => Some(State::Draining),
            (true, _, false) => Some(State::Serving),
            _ => None,
        }
    }
}

impl Slice {
    fn port(&self, wanted: &Port) -> Option<u16> {
        let ports = self.ports.as_deref().unwrap_or_default();
        match wanted {
            Port::Number(number) => Some(*number),
            Port::First => ports.first()?.port,
            Port::Named(name) => ports.iter().find(|port| port.name.as_deref() == Some(name))?.port,
        }
    }
}

/// The instances of all slices of a Service. An address that is in several of them, as it is while
/// the controller moves endpoints between slices, wants calls if it does in any.
pub(crate) fn instances<'a>(
    slices: impl IntoIterator<Item = &'a Slice>,
    port: &Port,
) -> Vec<Instance> {
    let mut instances: BTreeMap<Authority, Instance> = BTreeMap::new();
    for slice in slices {
        let Some(port) = slice.port(port) else {
            tracing::warn!(slice = slice.metadata.name, ?port, "a slice has no such port");
            continue;
        };
        for endpoint in slice.endpoints.as_deref().unwrap_or_default() {
            let Some(state) = endpoint.conditions.state() else { continue };
            // All addresses of an endpoint are the same one.
            let Some(address) = endpoint.addresses.first() else { continue };
            let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
            let mut instance = Instance::new(Authority { host, port });
            instance.state = state;
            instance.zone.clone_from(&endpoint.zone);
            let pod = endpoint.target_ref.as_ref().map(|reference| &reference.name);
            for (key, value) in [("node", endpoint.node_name.as_ref()), ("pod", pod)] {
                if let Some(value) = value.filter(|value| !value.is_empty()) {
                    instance.metadata.insert(key.to_owned(), value.clone());
                }
            }
            let there = instances.entry(instance.address.clone()).or_insert(instance);
            if state == State::Serving {
                there.state = state;
            }
        }
    }
    instances.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(json: &str) -> Slice {
        serde_json::from_str(json).unwrap()
    }

    fn shown(instances: &[Instance]) -> Vec<(String, State)> {
        instances.iter().map(|one| (one.address.to_string(), one.state)).collect()
    }

    #[test]
    fn conditions_say_who_wants_calls() {
        let says = |ready, serving, terminating| Conditions { ready, serving, terminating }.state();
        let (yes, no) = (Some(true), Some(false));
        for (state, expected) in [
            (says(None, None, None), Some(State::Serving)),
            (says(yes, yes, no), Some(State::Serving)),
            (says(no, no, no), None),
            (says(no, yes, yes), Some(State::Draining)),
            (says(no, no, yes), None),
            (says(no, None, None), None),
            // Services that publish addresses before they are ready.
            (says(yes, no, no), Some(State::Serving)),
        ] {
            assert_eq!(state, expected);
        }
    }

    #[test]
    fn slices_are_put_together_and_addresses_are_there_once() {
        let one = slice(
            r#"{"metadata":{"name":"a"},"addressType":"IPv4","ports":[{"name":"grpc","port":80}],
            "endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":true},"zone":"z1",
            "nodeName":"n1","targetRef":{"kind":"Pod","name":"orders-1"}},
            {"addresses":["10.0.0.2"],"conditions":{"ready":false,"serving":true,
            "terminating":true}}]}"#,
        );
        let two = slice(
            r#"{"metadata":{"name":"b"},"addressType":"IPv6","ports":[{"name":"grpc","port":80}],
            "endpoints":[{"addresses":["2001:db8::1"],"conditions":{}},
            {"addresses":["10.0.0.2"],"conditions":{"ready":true}}]}"#,
        );
        let empty = slice(r#"{"metadata":{"name":"c"},"endpoints":null,"ports":null}"#);
        let all = instances([&one, &two, &empty], &Port::First);
        let expected = ["10.0.0.1:80", "10.0.0.2:80", "[2001:db8::1]:80"];
        assert_eq!(shown(&all), expected.map(|at| (at.to_owned(), State::Serving)));
        assert_eq!(all[0].zone.as_deref(), Some("z1"));
        assert_eq!(
            (all[0].metadata["node"].as_str(), all[0].metadata["pod"].as_str()),
            ("n1", "orders-1")
        );
    }

    #[test]
    fn the_port_is_the_one_that_was_asked_for() {
        let slice = slice(
            r#"{"ports":[{"name":"http","port":8080},{"name":"grpc","port":9090}],
            "endpoints":[{"addresses":["10.0.0.1"]}]}"#,
        );
        for (port, expected) in [
            (Port::First, Some("10.0.0.1:8080")),
            (Port::Named("grpc".to_owned()), Some("10.0.0.1:9090")),
            (Port::Named("other".to_owned()), None),
            (Port::Number(7), Some("10.0.0.1:7")),
        ] {
            let all = instances([&slice], &port);
            assert_eq!(all.first().map(|one| one.address.to_string()).as_deref(), expected);
        }
    }
}
