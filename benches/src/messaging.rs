//! Brokers and outbox: the adapters' own measuring programs, in one run.
//!
//! Those that need a server start it, as the tests do, and leave it running.

use std::process::Command;

use antiphon_core::BoxError;

use crate::report::{progress, verbatim};

/// Packages, their measuring examples, and the server that each needs.
const PROGRAMS: [(&str, &str, Option<&str>); 11] = [
    ("antiphon-broker-memory", "throughput", None),
    ("antiphon-store-sqlite", "sql_throughput", None),
    ("antiphon-store-postgres", "postgres_broker_throughput", Some("postgres")),
    ("antiphon-store-postgres", "postgres_store_throughput", Some("postgres")),
    ("antiphon-store-mysql", "mysql_broker_throughput", Some("mariadb")),
    ("antiphon-store-mysql", "mysql_store_throughput", Some("mariadb")),
    ("antiphon-broker-nats", "nats_throughput", Some("nats")),
    ("antiphon-broker-rabbitmq", "rabbitmq_throughput", Some("rabbitmq")),
    ("antiphon-broker-mqtt", "mqtt_throughput", Some("mosquitto")),
    ("antiphon-broker-redis", "redis_throughput", Some("redis")),
    ("antiphon-broker-kafka", "kafka_throughput", Some("kafka")),
];

/// Runs them and shows what they print.
pub(crate) fn run() -> Result<(), BoxError> {
    for (package, example, server) in PROGRAMS {
        progress(&format!("messaging: {package} {example}"));
        if let Some(server) = server {
            start(server)?;
        }
        let build = ["run", "--release", "--quiet", "--package", package, "--example", example];
        verbatim(&format!("Messages: {package} ({example})"), cargo(&build)?.trim());
    }
    Ok(())
}

/// Starts a server of the tests, unless it runs.
pub(crate) fn start(server: &str) -> Result<(), BoxError> {
    cargo(&["run", "--quiet", "--package", "xtask", "--", "services", "up", server]).map(drop)
}

/// What cargo, or the program that it runs, prints.
fn cargo(arguments: &[&str]) -> Result<String, BoxError> {
    let output =
        Command::new("cargo").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output()?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!("cargo {}: {}: {error}", arguments.join(" "), output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
