//! What is said to an agent and what it answers, and which part of an instance is kept where.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_discovery::{Authority, Instance, RegistryError, State};
use serde::{Deserialize, Serialize};

/// Keys of the metadata that are ours.
const ZONE: &str = "antiphon-zone";
const PRIORITY: &str = "antiphon-priority";
const STATE: &str = "antiphon-state";
/// Who wrote an entry: whoever finds another one there has been replaced.
pub(crate) const OWNER: &str = "antiphon-owner";
const DRAINING: &str = "draining";

/// What Consul takes as metadata.
const META_PAIRS_MAX: usize = 64;
const META_KEY_MAX: usize = 128;
const META_VALUE_MAX: usize = 512;
/// The largest weight that Consul takes.
const WEIGHT_MAX: u32 = 65_535;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Register {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) meta: BTreeMap<String, String>,
    pub(crate) weights: Weights,
    pub(crate) check: Check,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Weights {
    pub(crate) passing: u32,
    pub(crate) warning: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Check {
    #[serde(rename = "CheckID")]
    pub(crate) check_id: String,
    pub(crate) name: String,
    #[serde(rename = "TTL")]
    pub(crate) ttl: String,
    pub(crate) status: String,
    pub(crate) deregister_critical_service_after: String,
}

/// One instance among those that are healthy.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Healthy {
    pub(crate) node: Node,
    pub(crate) service: Service,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Node {
    #[serde(default)]
    pub(crate) address: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Service {
    #[serde(rename = "ID", default)]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) service: String,
    #[serde(default)]
    pub(crate) address: String,
    /// Whatever others registered: Consul takes any number.
    #[serde(default)]
    pub(crate) port: i64,
    #[serde(default)]
    pub(crate) meta: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(crate) weights: Option<Weights>,
}

/// The check of an instance.
pub(crate) fn check_id(instance_id: &str) -> String {
    format!("service:{instance_id}")
}

impl Register {
    /// What is said to register an instance.
    ///
    /// # Errors
    /// Consul cannot keep its metadata; the text says why.
    pub(crate) fn new(
        service: &str,
        id: &str,
        owner: &str,
        instance: &Instance,
        lease: Duration,
        deregister_after: Duration,
    ) -> Result<Self, RegistryError> {
        let mut meta = instance.metadata.clone();
        let mut ours = vec![(OWNER, owner.to_owned())];
        ours.extend(instance.zone.clone().map(|zone| (ZONE, zone)));
        if instance.priority > 0 {
            ours.push((PRIORITY, instance.priority.to_string()));
        }
        if instance.state == State::Draining {
            ours.push((STATE, DRAINING.to_owned()));
        }
        meta.extend(ours.into_iter().map(|(key, value)| (key.to_owned(), value)));
        check(&meta).map_err(|why| {
            RegistryError::invalid(format!("{id} cannot be registered at Consul: {why}"))
        })?;
        let host = &instance.address.host;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let milliseconds = |time: Duration| format!("{}ms", time.as_millis());
        Ok(Self {
            id: id.to_owned(),
            name: service.to_owned(),
            address: bare.unwrap_or(host).to_owned(),
            port: instance.address.port,
            meta,
            weights: Weights { passing: instance.weight.min(WEIGHT_MAX), warning: 1 },
            check: Check {
                check_id: check_id(id),
                name: "sign of life".to_owned(),
                ttl: milliseconds(lease),
                status: "passing".to_owned(),
                deregister_critical_service_after: milliseconds(deregister_after),
            },
        })
    }
}

fn check(meta: &BTreeMap<String, String>) -> Result<(), String> {
    if meta.len() > META_PAIRS_MAX {
        return Err(format!("it has more than {META_PAIRS_MAX} pairs of metadata, with ours"));
    }
    let word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    for (key, value) in meta {
        if key.is_empty() || key.len() > META_KEY_MAX || !key.chars().all(word) {
            return Err(format!(
                "the key `{key}` of its metadata is not made of A-Z, 0-9, - and _"
            ));
        }
        if value.len() > META_VALUE_MAX {
            return Err(format!("the value of `{key}` is longer than {META_VALUE_MAX} bytes"));
        }
    }
    Ok(())
}

impl Healthy {
    /// The instance, whoever registered it; the text of an error says what it lacks.
    pub(crate) fn instance(self) -> Result<Instance, String> {
        let Service { address, port, meta, weights, .. } = self.service;
        let host = if address.is_empty() { self.node.address } else { address };
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let address: Authority =
            format!("{host}:{port}").parse().map_err(|why| format!("{host}:{port}: {why}"))?;
        let mut metadata = meta.unwrap_or_default();
        metadata.remove(OWNER);
        let zone = metadata.remove(ZONE);
        let priority = metadata.remove(PRIORITY).and_then(|text| text.parse().ok()).unwrap_or(0);
        let state = match metadata.remove(STATE).as_deref() {
            Some(DRAINING) => State::Draining,
            _ => State::Serving,
        };
        let weight = weights.map_or(1, |weights| weights.passing.max(1));
        Ok(Instance { address, weight, priority, zone, metadata, state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(instance: &Instance) -> Result<Register, String> {
        let (lease, after) = (Duration::from_secs(15), Duration::from_secs(60));
        Register::new("orders", "orders@a:1", "me", instance, lease, after)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_instance_is_registered_as_the_api_wants_it() {
        let mut instance = Instance::new("[::1]:80".parse().unwrap());
        instance.weight = 1_000_000;
        instance.state = State::Draining;
        let said = serde_json::to_value(register(&instance).unwrap()).unwrap();
        assert_eq!(said["Address"], "::1");
        assert_eq!(said["Weights"]["Passing"], 65_535);
        assert_eq!(said["Check"]["TTL"], "15000ms");
        assert_eq!(said["Check"]["DeregisterCriticalServiceAfter"], "60000ms");
        assert_eq!(said["Meta"]["antiphon-state"], "draining");
    }

    #[test]
    fn what_consul_cannot_keep_is_refused_with_the_reason() {
        let mut instance = Instance::new("a:1".parse().unwrap());
        instance.metadata.insert("a.b".to_owned(), String::new());
        assert!(register(&instance).unwrap_err().contains("`a.b`"));
        instance.metadata = [("long".to_owned(), "x".repeat(513))].into();
        assert!(register(&instance).unwrap_err().contains("512 bytes"));
        instance.metadata = (0..64).map(|n| (n.to_string(), String::new())).collect();
        assert!(register(&instance).unwrap_err().contains("64 pairs"));
    }

    #[test]
    fn what_others_registered_is_an_instance_as_well() {
        let foreign = r#"{"Node":{"Node":"n","Address":"10.0.0.1"},
            "Service":{"ID":"x","Service":"orders","Address":"","Port":80,"Meta":null,
            "Weights":{"Passing":0,"Warning":0},"Tags":["a"]},"Checks":[]}"#;
        let healthy: Healthy = serde_json::from_str(foreign).unwrap();
        assert_eq!(healthy.instance(), Ok(Instance::new("10.0.0.1:80".parse().unwrap())));
        let portless = r#"{"Node":{"Address":"10.0.0.1"},"Service":{"ID":"x","Service":"y"}}"#;
        let healthy: Healthy = serde_json::from_str(portless).unwrap();
        assert!(healthy.instance().unwrap_err().contains("port"));
    }

    #[test]
    fn a_port_that_is_none_takes_no_other_instance_along() {
        let answer = r#"[{"Node":{"Address":"10.0.0.1"},"Service":{"ID":"x","Port":70000}},
            {"Node":{"Address":"10.0.0.2"},"Service":{"ID":"y","Port":80}},
            {"Node":{"Address":"10.0.0.3"},"Service":{"ID":"z","Port":-1}}]"#;
        let healthy: Vec<Healthy> = serde_json::from_str(answer).unwrap();
        let [large, right, negative] = healthy.try_into().unwrap();
        for wrong in [large, negative] {
            assert!(wrong.instance().unwrap_err().contains("1 to 65535"));
        }
        assert_eq!(right.instance(), Ok(Instance::new("10.0.0.2:80".parse().unwrap())));
    }
}
