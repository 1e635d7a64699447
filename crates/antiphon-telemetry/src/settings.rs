//! The `[telemetry]` section.

use antiphon_config::HumanDuration;
use serde::{Deserialize, Serialize};

/// Who records: what every log line, metric and span is attributed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The name, the same for all instances: `orders`.
    pub name: String,
    /// The version of the program.
    pub version: String,
    /// This process, unique among all instances.
    pub instance: String,
}

impl Service {
    /// This process as an instance of a service.
    #[must_use]
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        let instance = uuid::Uuid::new_v4().to_string();
        Self { name: name.into(), version: version.into(), instance }
    }
}

/// `[telemetry]`: what is recorded, and where it goes.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySettings {
    /// Logs.
    pub log: LogSettings,
    /// Traces.
    pub traces: TraceSettings,
}

/// `[telemetry.log]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// How lines look.
    pub format: LogFormat,
    /// Where lines go.
    pub output: LogOutput,
    /// Which lines there are: a level for all, and levels by target: `info,sqlx=warn`.
    pub filter: String,
    /// Lines that wait for a slow output; more are dropped and counted.
    pub queue: usize,
    /// Names of fields whose values are not written, in addition to the usual ones (`password`,
    /// `secret`, `token`, `authorization`, `cookie`, …).
    pub redact: Vec<String>,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            format: LogFormat::Auto,
            output: LogOutput::Stderr,
            // The AMQP client calls it an error when a queue that is looked for is not there, and logs
            // messages that come back with their bodies.
            filter: "info,lapin=off".to_owned(),
            queue: 8_192,
            redact: Vec::new(),
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Pretty on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// One JSON object per line.
    Json,
    /// For people.
    Pretty,
}

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogOutput {
    /// The standard output.
    Stdout,
    /// The standard error, so that what a program prints for its user stays apart.
    Stderr,
}

/// `[telemetry.traces]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceSettings {
    /// Where a collector takes OTLP over HTTP: `http://127.0.0.1:4318/v1/traces`. Without a path,
    /// `/v1/traces` is meant. Nothing is recorded without an endpoint.
    pub endpoint: Option<String>,
    /// The share of new traces that is recorded, from 0 to 1. What a caller decided stands.
    pub sample_ratio: f64,
    /// Spans that wait to be sent; more are dropped and counted.
    pub queue: usize,
    /// Most spans in one request.
    pub batch: usize,
    /// How long spans are collected before they are sent.
    pub interval: HumanDuration,
    /// How long the collector may take to answer.
    pub timeout: HumanDuration,
}

impl Default for TraceSettings {
    fn default() -> Self {
        Self {
            endpoint: None,
            sample_ratio: 1.0,
            queue: 8_192,
            batch: 512,
            interval: HumanDuration::from_secs(1),
            timeout: HumanDuration::from_secs(5),
        }
    }
}
