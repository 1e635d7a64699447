//! Who may depend on whom.
//!
//! The arrows between the framework's crates are a closed table, each with its reason. An arrow that
//! is not in it is a decision: add it here in the change that needs it, or find a better place for the
//! code. Foreign clients stay where the second table says.

use super::Violation;
use super::workspace::Package;

/// Crate, what it may depend on, and why.
const ARROWS: [(&str, &[&str], &str); 17] = [
    ("antiphon-core", &[], "the words everybody shares know nobody"),
    ("antiphon-config", &[], "settings are read before there is anything else"),
    ("antiphon-contract", &[], "contracts are read at build time, without the framework"),
    ("antiphon-build", &["antiphon-contract"], "generates what the model says"),
    ("antiphon-telemetry", &["antiphon-config", "antiphon-core"], "settings; ids of contexts"),
    (
        "antiphon-cache",
        &["antiphon-config", "antiphon-core", "antiphon-telemetry"],
        "settings; loads have contexts and fail with statuses; lookups are counted",
    ),
    ("antiphon-resilience", &["antiphon-core"], "policies decide by statuses and deadlines"),
    (
        "antiphon-discovery",
        &["antiphon-config", "antiphon-core", "antiphon-telemetry"],
        "registries are set up by settings and fail like everything else; what is known is shown",
    ),
    (
        "antiphon-redis-client",
        &["antiphon-config", "antiphon-core"],
        "addresses and files of TLS are settings; how retries wait",
    ),
    (
        "antiphon-registry-http",
        &["antiphon-config", "antiphon-core", "antiphon-discovery"],
        "files of TLS are settings; errors of registries; apart for the TLS library that it links",
    ),
    (
        "antiphon-rpc",
        &[
            "antiphon-config",
            "antiphon-contract",
            "antiphon-core",
            "antiphon-discovery",
            "antiphon-resilience",
            "antiphon-telemetry",
        ],
        "routes come from the contract; calls are limited and recorded",
    ),
    (
        "antiphon-messaging",
        &["antiphon-config", "antiphon-core", "antiphon-telemetry"],
        "deliveries have contexts and are recorded",
    ),
    (
        "antiphon-outbox",
        &["antiphon-config", "antiphon-core", "antiphon-messaging", "antiphon-telemetry"],
        "the relay publishes",
    ),
    (
        "antiphon-sqlbroker",
        &["antiphon-core", "antiphon-messaging"],
        "a broker; databases implement what it needs",
    ),
    (
        "antiphon-saga",
        &[
            "antiphon-config",
            "antiphon-core",
            "antiphon-messaging",
            "antiphon-outbox",
            "antiphon-telemetry",
        ],
        "steps are commands, sent in the transaction that advances",
    ),
    (
        "antiphon-testing",
        &[
            "antiphon-cache",
            "antiphon-core",
            "antiphon-discovery",
            "antiphon-messaging",
            "antiphon-outbox",
            "antiphon-resilience",
            "antiphon-saga",
            "antiphon-telemetry",
            "test-servers",
        ],
        "suites for every port, and the real servers they run against",
    ),
    (
        "antiphon",
        &[
            "antiphon-broker-kafka",
            "antiphon-broker-memory",
            "antiphon-broker-mqtt",
            "antiphon-broker-nats",
            "antiphon-broker-rabbitmq",
            "antiphon-broker-redis",
            "antiphon-cache",
            "antiphon-cache-redis",
            "antiphon-config",
            "antiphon-contract",
            "antiphon-core",
            "antiphon-discovery",
            "antiphon-messaging",
            "antiphon-outbox",
            "antiphon-rates-redis",
            "antiphon-registry-consul",
            "antiphon-registry-etcd",
            "antiphon-registry-kubernetes",
            "antiphon-registry-zookeeper",
            "antiphon-resilience",
            "antiphon-rpc",
            "antiphon-saga",
            "antiphon-store-mysql",
            "antiphon-store-postgres",
            "antiphon-store-sqlite",
            "antiphon-telemetry",
        ],
        "the facade puts everything together; adapters are its features",
    ),
];

/// What an adapter may depend on: where the ports are.
const PORTS: [&str; 12] = [
    "antiphon-cache",
    "antiphon-config",
    "antiphon-core",
    "antiphon-discovery",
    "antiphon-messaging",
    "antiphon-outbox",
    "antiphon-redis-client",
    "antiphon-registry-http",
    "antiphon-resilience",
    "antiphon-saga",
    "antiphon-sqlbroker",
    "antiphon-telemetry",
];

/// Foreign client, and the folders of the packages that may name it.
const CLIENTS: [(&str, &[&str]); 10] = [
    // The facade re-exports it: what users write in their transactions is plain sqlx.
    (
        "sqlx",
        &[
            "adapters/antiphon-store-mysql",
            "adapters/antiphon-store-postgres",
            "adapters/antiphon-store-sqlite",
            "crates/antiphon",
            "examples/",
            "benches",
        ],
    ),
    ("rusqlite", &["adapters/antiphon-store-sqlite"]),
    ("rdkafka", &["adapters/antiphon-broker-kafka"]),
    ("lapin", &["adapters/antiphon-broker-rabbitmq"]),
    ("async-nats", &["adapters/antiphon-broker-nats"]),
    ("rumqttc", &["adapters/antiphon-broker-mqtt"]),
    (
        "redis",
        &[
            "adapters/antiphon-broker-redis",
            "adapters/antiphon-cache-redis",
            "adapters/antiphon-rates-redis",
            "crates/antiphon-redis-client",
        ],
    ),
    ("hickory-resolver", &["crates/antiphon-discovery"]),
    ("zookeeper-client", &["adapters/antiphon-registry-zookeeper"]),
    ("kube", &["adapters/antiphon-registry-kubernetes"]),
];

/// What only benches compare with, and what must not be linked into anything.
const BASELINES: [&str; 2] = ["tonic", "axum"];

pub(super) fn check(packages: &[Package]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for package in packages {
        let ours = |name: &str| packages.iter().any(|other| other.name == name);
        let linked = package.dependencies.iter().filter(|one| one.kind.as_deref() != Some("dev"));
        for dependency in linked.filter(|one| ours(&one.name)) {
            if let Some(words) = refuse(package, &dependency.name) {
                violations.push(Violation::new(manifest(package), 0, words));
            }
        }
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            if let Some((_, places)) = CLIENTS.iter().find(|(client, _)| *client == name)
                && !places.iter().any(|place| is_at(&package.folder, place))
            {
                let places =
                    if places.is_empty() { "nowhere".to_owned() } else { places.join(", ") };
                let words = format!("names the foreign client {name}, which belongs to: {places}");
                violations.push(Violation::new(manifest(package), 0, words));
            }
        }
        let framework =
            package.folder.starts_with("crates/") || package.folder.starts_with("adapters/");
        let baseline = package
            .dependencies
            .iter()
            .find(|one| one.kind.is_none() && BASELINES.contains(&one.name.as_str()));
        if let (true, Some(one)) = (framework, baseline) {
            let words = format!("links {}, which is here only to be compared with", one.name);
            violations.push(Violation::new(manifest(package), 0, words));
        }
    }
    violations
}

/// Why the arrow must not be, if it must not.
fn refuse(package: &Package, to: &str) -> Option<String> {
    let from = package.name.as_str();
    if package.folder.starts_with("crates/") {
        return match ARROWS.iter().find(|(name, ..)| *name == from) {
            Some((_, known, _)) if known.contains(&to) => None,
            Some((_, known, why)) => Some(format!(
                "{from} must not depend on {to}: it may on [{}] ({why}); a new arrow is a decision, \
                 made in xtask/src/tidy/graph.rs",
                known.join(", ")
            )),
            None => Some(format!(
                "{from} is not in the table of crates in xtask/src/tidy/graph.rs: say there what it \
                 may depend on, and why"
            )),
        };
    }
    if package.folder.starts_with("adapters/") && !PORTS.contains(&to) {
        return Some(format!(
            "{from} is an adapter and must not depend on {to}: adapters implement ports and see \
             neither each other nor the facade"
        ));
    }
    None
}

/// Whether a folder is the named one, or below it where the name ends with a slash.
fn is_at(folder: &str, place: &str) -> bool {
    folder == place || place.ends_with('/') && folder.starts_with(place)
}

fn manifest(package: &Package) -> String {
    format!("{}/Cargo.toml", package.folder)
}

#[cfg(test)]
mod tests {
    use super::super::workspace::Dependency;
    use super::*;

    fn package(folder: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        let name = folder.rsplit('/').next().unwrap_or(folder).to_owned();
        let dependencies = dependencies
            .iter()
            .map(|(name, kind)| Dependency {
                name: (*name).to_owned(),
                kind: kind.map(str::to_owned),
            })
            .collect();
        Package { name, folder: folder.to_owned(), dependencies }
    }

    fn words(packages: &[Package]) -> String {
        check(packages).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn arrows_outside_the_table_are_refused() {
        let core = package("crates/antiphon-core", &[]);
        let saga = package("crates/antiphon-saga", &[]);
        let right = package("crates/antiphon-messaging", &[("antiphon-core", None)]);
        assert_eq!(words(&[core.clone(), saga.clone(), right]), "");
        let wrong = package("crates/antiphon-messaging", &[("antiphon-saga", None)]);
        let words_of = words(&[core.clone(), saga.clone(), wrong]);
        assert!(
            words_of.contains("antiphon-messaging must not depend on antiphon-saga"),
            "{words_of}"
        );
        let test_only = package("crates/antiphon-messaging", &[("antiphon-saga", Some("dev"))]);
        assert_eq!(words(&[core, saga, test_only]), "");
    }

    #[test]
    fn a_crate_must_be_in_the_table() {
        let core = package("crates/antiphon-core", &[]);
        let unknown = package("crates/antiphon-novelty", &[("antiphon-core", None)]);
        assert!(words(&[core, unknown]).contains("is not in the table"));
    }

    #[test]
    fn adapters_see_neither_each_other_nor_the_facade() {
        let memory = package("adapters/antiphon-broker-memory", &[]);
        let facade = package("crates/antiphon", &[]);
        for to in ["antiphon-broker-memory", "antiphon"] {
            let kafka = package("adapters/antiphon-broker-kafka", &[(to, None)]);
            let words = words(&[memory.clone(), facade.clone(), kafka]);
            assert!(words.contains("is an adapter and must not"), "{words}");
        }
    }

    #[test]
    fn foreign_clients_are_named_in_one_place() {
        let outbox = package("crates/antiphon-outbox", &[("sqlx", None)]);
        assert!(words(&[outbox]).contains("names the foreign client sqlx"));
        let tests_too = package("crates/antiphon-outbox", &[("sqlx", Some("dev"))]);
        assert!(words(&[tests_too]).contains("names the foreign client sqlx"));
        let store = package("adapters/antiphon-store-sqlite", &[("sqlx", None)]);
        assert_eq!(words(&[store]), "");
    }

    #[test]
    fn what_is_compared_with_is_not_linked() {
        let rpc = package("crates/antiphon-rpc", &[("axum", None)]);
        assert!(words(&[rpc]).contains("only to be compared with"));
        let benches = package("benches", &[("axum", None)]);
        assert_eq!(words(&[benches]), "");
    }
}
