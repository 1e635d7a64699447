//! The `antiphon` command: what operators do beside a running system.
//!
//! It reads the settings that the services run with, and talks to their databases and their broker
//! directly: no service has to be up. Tables are for people, `--json` is for programs; errors are
//! one line on stderr with exit code 1, or 2 for what must be changed before trying again.

mod admin;
mod commands;
mod listing;
mod output;

use std::path::PathBuf;
use std::process::ExitCode;

use antiphon::Sources;
use antiphon::operate::Operations;
use clap::{Parser, Subcommand};

use commands::{calls, dead, doctor, groups, ledger, outbox, sagas, topics};
use listing::Format;

/// Looks at a running system, and mends it.
#[derive(Debug, Parser)]
#[command(name = "antiphon", version, about, max_term_width = 100)]
struct Cli {
    /// The settings that the services run with; `antiphon.toml` in the working directory when it is
    /// there.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// One more setting, above the file: `broker.url=nats://127.0.0.1`. May be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE", global = true, value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Prints JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists topics, and how many messages the broker keeps of each.
    Topics,
    /// Lists groups, and how far behind each is.
    Groups(groups::Options),
    /// Looks at dead letters, gives them back to their groups, or forgets them.
    #[command(subcommand)]
    Dead(dead::Command),
    /// Shows what waits in the outboxes, and what the broker refused for good.
    Outbox(outbox::Options),
    /// Looks at sagas, and intervenes.
    #[command(subcommand)]
    Sagas(sagas::Command),
    /// Compares what was committed with what took effect. `lost` must be 0 at rest.
    Ledger(ledger::Options),
    /// Looks at how a running process calls others: targets, instances, policies.
    #[command(subcommand)]
    Calls(calls::Command),
    /// Checks settings, connections, versions and durability, and says what to change.
    Doctor(doctor::Options),
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, for example broker.url=nats://127.0.0.1".to_owned()),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    antiphon::launch(run(cli))
}

async fn run(cli: Cli) -> antiphon::Result<()> {
    let mut sources = Sources::standard(cli.config);
    for (key, value) in cli.settings {
        sources = sources.set("--set", key, value);
    }
    let operations = Operations::load(&sources)?;
    let format = if cli.json { Format::Json } else { Format::Table };
    match cli.command {
        Command::Topics => topics::run(&operations, format).await,
        Command::Groups(options) => groups::run(&operations, format, options).await,
        Command::Dead(command) => dead::run(&operations, format, command).await,
        Command::Outbox(options) => outbox::run(&operations, format, options).await,
        Command::Sagas(command) => sagas::run(&operations, format, command).await,
        Command::Ledger(options) => ledger::run(&operations, format, options).await,
        Command::Calls(command) => calls::run(&operations, format, command).await,
        Command::Doctor(options) => doctor::run(&operations, format, options).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_setting_has_a_key_and_a_value() {
        assert_eq!(setting("broker.url=a=b").unwrap(), ("broker.url".into(), "a=b".into()));
        assert!(setting("broker.url").is_err() && setting("=x").is_err());
    }
}
