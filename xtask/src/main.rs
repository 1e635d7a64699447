//! The commands of this repository: `cargo xtask test`, `tidy`, `bench`, `services`, `faults`.
//!
//! Everything that continuous integration does is one of these, so that it can be done at a desk. A
//! command prints what it does and how long it took, ends with a summary of what was run, and exits
//! with 1 if anything failed.

mod bench;
mod faults;
mod process;
mod services;
mod summary;
mod test;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The commands of this repository: check, test, measure, start servers, prove.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check and test everything: format, house rules, lints, documentation, tests, other languages.
    ///
    /// What the tests need beside the Rust toolchain is prepared first and kept in a cache folder
    /// outside the repository, so the second run is faster than the first.
    Test(test::Options),
    /// Check the house rules that the compiler does not know.
    ///
    /// Direction of dependencies, foreign clients named in one crate, conformance tests of adapters,
    /// the map in ARCHITECTURE.md, links in documents, headers, sizes, and words that must not stay.
    Tidy,
    /// Measure against the bare parts, in release, in one run, and print the tables.
    Bench(bench::Options),
    /// Start, stop and look at the real servers that tests and development talk to.
    ///
    /// PostgreSQL, MariaDB, Redis, NATS, RabbitMQ, Mosquitto, Kafka, etcd, ZooKeeper, Consul, Knot DNS and Kubernetes,
    /// on loopback, on ports of their own, with data in the cache folder. What is not installed is installed where
    /// this is root and Debian; else containers are used where Docker answers.
    Services(services::Options),
    /// Run the shop in six processes on real engines, make everything fail, heal, and audit.
    ///
    /// Servers, network and processes of the run are its own. A seed decides what goes wrong and when;
    /// it is printed, and repeats the run.
    Faults(faults::Options),
}

fn main() -> ExitCode {
    let root = root();
    let passed = match Cli::parse().command {
        Command::Test(options) => test::run(&root, &options),
        Command::Tidy => tidy::run(&root),
        Command::Bench(options) => bench::run(&root, &options),
        Command::Services(options) => services::run(&root, &options),
        Command::Faults(options) => faults::run(&root, &options),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The folder of the workspace: the one above this package.
fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}
