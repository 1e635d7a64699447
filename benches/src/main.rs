//! What the framework costs over the bare parts: everything in one run, on one machine, interleaved.
//!
//! `antiphon-benches run` runs all benches or the named ones and prints tables; servers under test are
//! processes of their own (`antiphon-benches serve …`), pinned to one core while the load comes from
//! the other. CPU per call is user and system time of the server's process.

mod calls;
mod contract;
mod echo;
mod inproc;
mod load;
mod messaging;
mod overload;
mod process;
mod report;
mod rpc;
mod saga;
mod shop;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Antiphon against the bare parts.
#[derive(Parser, Debug)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Runs benches and prints their tables.
    Run(Options),
    /// Serves the echo, for the load of another process.
    Serve {
        /// On what.
        server: echo::Kind,
        /// Where.
        address: SocketAddr,
    },
}

/// What is run, and how long.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// The benches; all of them when not given.
    benches: Vec<Bench>,
    /// Rounds; medians are shown.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that each server is under load in each round.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// A small unary gRPC call, and larger ones, against bare hyper, connectrpc and grpc-go.
    Rpc,
    /// The same method over REST, against axum.
    Rest,
    /// A call to a service of the same process.
    Inproc,
    /// What the client's stack costs against connectrpc's bare client, and what balancing is worth.
    Calls,
    /// The memory broker through the whole consumer stack, the SQL broker, the outbox.
    Messaging,
    /// Three times as many calls as can be answered, with the default limits and without any.
    Overload,
    /// Three-step sagas on SQLite and on PostgreSQL, all durable.
    Saga,
    /// The shop in one process: orders per second, start and memory.
    Shop,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve { server, address } => echo::serve(server, address),
        Command::Run(options) => run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), antiphon_core::BoxError> {
    let wanted = |bench| options.benches.is_empty() || options.benches.contains(&bench);
    if wanted(Bench::Rpc) {
        rpc::grpc(options)?;
    }
    if wanted(Bench::Rest) {
        rpc::rest(options)?;
    }
    if wanted(Bench::Inproc) {
        inproc::run()?;
    }
    if wanted(Bench::Calls) {
        calls::run(options)?;
    }
    if wanted(Bench::Messaging) {
        messaging::run()?;
    }
    if wanted(Bench::Overload) {
        overload::run(options)?;
    }
    if wanted(Bench::Saga) {
        saga::run()?;
    }
    if wanted(Bench::Shop) {
        shop::run()?;
    }
    Ok(())
}
