//! `antiphon calls`: how a running process calls others.

use std::net::SocketAddr;

use antiphon::operate::Operations;
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin::page;
use crate::listing::{Format, Listing};

/// What to look at.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists targets and their instances: state, calls under way, latency, what is set aside.
    List(Asked),
    /// Shows what holds for the calls of a method, and where each value comes from.
    Explain(Explain),
}

/// Whom to ask.
#[derive(Args, Debug)]
pub(crate) struct Asked {
    /// The admin port of the process that calls, instead of `admin.listen` of the settings.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
}

/// Which method.
#[derive(Args, Debug)]
pub(crate) struct Explain {
    /// `package.Service/Method`, or a part of it.
    method: String,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Deserialize)]
struct Target {
    target: String,
    held_back: f64,
    agreed_seconds_ago: Option<f64>,
    trouble: Option<String>,
    methods: Vec<Method>,
    instances: Vec<Instance>,
}

#[derive(Deserialize)]
struct Method {
    method: String,
    policy: Vec<PolicyValue>,
}

#[derive(Deserialize)]
struct PolicyValue {
    name: String,
    value: String,
    from: String,
}

#[derive(Deserialize)]
struct Instance {
    address: String,
    state: String,
    set_aside: bool,
    connections: usize,
    in_flight: u32,
    picked: u64,
    latency_seconds: f64,
    failure: Option<String>,
}

/// A setting in force, as `/config` shows it.
#[derive(Deserialize)]
struct Setting {
    setting: String,
    origin: String,
}

pub(crate) async fn run(
    operations: &Operations,
    format: Format,
    command: Command,
) -> antiphon::Result<()> {
    match command {
        Command::List(asked) => list(asked.address(operations), format).await,
        Command::Explain(Explain { method, asked }) => {
            explain(asked.address(operations), format, &method).await
        }
    }
}

impl Asked {
    fn address(&self, operations: &Operations) -> SocketAddr {
        self.admin.unwrap_or_else(|| operations.admin())
    }
}

async fn list(admin: SocketAddr, format: Format) -> antiphon::Result<()> {
    let targets: Vec<Target> = page(admin, "/debug/targets").await?;
    let columns = &[
        "target",
        "instance",
        "state",
        "connections",
        "in_flight",
        "picked",
        "latency_ms",
        "held_back",
        "trouble",
    ];
    let mut listing = Listing::new(columns, "This process calls nobody over the network.");
    for target in &targets {
        for instance in &target.instances {
            let state = if instance.set_aside { "set aside" } else { &instance.state };
            let trouble = instance.failure.as_ref().or(target.trouble.as_ref());
            listing.row([
                json!(target.target),
                json!(instance.address),
                json!(state),
                json!(instance.connections),
                json!(instance.in_flight),
                json!(instance.picked),
                json!((instance.latency_seconds * 1e5).round() / 100.0),
                json!(target.held_back),
                json!(trouble),
            ]);
        }
        if target.instances.is_empty() {
            let state = match target.agreed_seconds_ago {
                None => "not called yet",
                Some(_) => "no instances",
            };
            let nothing = Value::Null;
            listing.row([
                json!(target.target),
                nothing.clone(),
                json!(state),
                nothing.clone(),
                nothing.clone(),
                nothing.clone(),
                nothing,
                json!(target.held_back),
                json!(target.trouble),
            ]);
        }
    }
    listing.print(format);
    Ok(())
}

async fn explain(admin: SocketAddr, format: Format, wanted: &str) -> antiphon::Result<()> {
    let targets: Vec<Target> = page(admin, "/debug/targets").await?;
    let settings: Vec<Setting> = page(admin, "/config").await?;
    let columns = &["method", "policy", "value", "from"];
    let mut listing = Listing::new(columns, "");
    let mut known = Vec::new();
    let mut found = false;
    for (target, method) in
        targets.iter().flat_map(|target| target.methods.iter().map(move |method| (target, method)))
    {
        known.push(method.method.as_str());
        if !method.method.contains(wanted) {
            continue;
        }
        found = true;
        listing.row([json!(method.method), json!("target"), json!(target.target), json!("")]);
        for value in &method.policy {
            let service = method.method.split('/').next().unwrap_or_default();
            listing.row([
                json!(method.method),
                json!(value.name),
                json!(value.value),
                json!(origin(service, &value.from, &settings)),
            ]);
        }
    }
    if !found {
        known.sort_unstable();
        known.dedup();
        return Err(match known.as_slice() {
            [] => "this process calls no service over the network".into(),
            known => format!(
                "this process calls no method like `{wanted}`; it calls {}",
                known.join(", ")
            )
            .into(),
        });
    }
    listing.print(format);
    Ok(())
}

/// Where a value comes from: the contract, or the setting and the place where it was written.
fn origin(service: &str, from: &str, settings: &[Setting]) -> String {
    if from == "contract" {
        return from.to_owned();
    }
    let written = |section: &str| {
        let path = format!("{section}.{from}");
        settings.iter().find(|setting| setting.setting == path)
    };
    let own = written(&format!("clients.{service}"));
    match own.or_else(|| written("client")) {
        Some(setting) => format!("{} ({})", setting.setting, setting.origin),
        None => format!("client.{from} (default)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_setting_is_named_with_its_place() {
        let setting = |setting: &str, origin: &str| Setting {
            setting: setting.into(),
            origin: origin.into(),
        };
        let settings = [
            setting("client.timeout", "default"),
            setting("clients.s.v1.Stock.timeout", "antiphon.toml:3:11"),
        ];
        let stock = origin("s.v1.Stock", "timeout", &settings);
        assert_eq!(stock, "clients.s.v1.Stock.timeout (antiphon.toml:3:11)");
        assert_eq!(origin("s.v1.Other", "timeout", &settings), "client.timeout (default)");
        assert_eq!(origin("s.v1.Other", "contract", &settings), "contract");
        assert_eq!(origin("s.v1.Other", "calls_max", &settings), "client.calls_max (default)");
    }
}
