//! The reference system: a small online shop of six services.
//!
//! `shop` runs everything in one process; `shop run --only …` runs a part; `shop simulate` is the
//! crowd of customers; `shop audit` checks that nothing was lost and nothing was done twice.

mod audit;
mod catalogue;
mod contract;
mod describe;
mod inventory;
mod notifications;
mod orders;
mod payments;
mod points;
mod run;
mod shipping;
mod simulate;
mod time;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The Antiphon shop: six services behind one contract each.
#[derive(Parser, Debug)]
#[command(version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: run::Run,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Runs the shop, or some of its services (the default).
    Run(run::Run),
    /// Places many orders over the public API and follows each to its end.
    Simulate(simulate::Simulate),
    /// Reads every service's database and checks what must be true of the whole.
    Audit(audit::Audit),
    /// Writes the contract as a descriptor set, for tools and clients of other languages.
    Contract(describe::Describe),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        None => antiphon::launch(run::run(cli.run)),
        Some(Command::Run(options)) => antiphon::launch(run::run(options)),
        Some(Command::Simulate(options)) => antiphon::launch(simulate::run(options)),
        Some(Command::Audit(options)) => antiphon::launch(audit::run(options)),
        Some(Command::Contract(options)) => antiphon::launch(describe::run(options)),
    }
}
