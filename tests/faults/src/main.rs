//! `cargo xtask faults`: the shop under faults, on engines and for a time of one's choice.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use fault_tests::engine::{BrokerKind, StoreKind};
use fault_tests::proof::void;
use fault_tests::run::{Options, Verdict, Work, run};

/// Runs the shop in six processes, makes everything fail, heals, and asks the audit.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask faults", max_term_width = 100)]
struct Cli {
    /// How long things go wrong, in minutes
    #[arg(long, default_value_t = 2.0, value_name = "N")]
    minutes: f64,
    /// Repeats a run: the seed that it printed
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// What keeps rows: postgres, mariadb, sqlite
    #[arg(long, default_value = "postgres", value_name = "STORE")]
    store: StoreKind,
    /// What carries messages, several separated by commas: sql (the database itself), nats, kafka,
    /// rabbitmq, mqtt, redis
    #[arg(long, default_value = "sql", value_delimiter = ',', value_name = "BROKER")]
    broker: Vec<BrokerKind>,
    /// Orders per second
    #[arg(long, default_value_t = 20, value_name = "N")]
    rate: u32,
    /// Nothing goes wrong: so many orders are placed as fast as it goes, and audited
    #[arg(long, value_name = "N", conflicts_with_all = ["minutes", "rate"])]
    calm: Option<u32>,
}

#[expect(clippy::print_stdout, reason = "this is a command")]
fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            println!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut passed = true;
    for broker in &cli.broker {
        passed &= runtime.block_on(async {
            tokio::select! {
                passed = one(&cli, *broker) => passed,
                // Servers and processes end with what is dropped here.
                _ = tokio::signal::ctrl_c() => false,
            }
        });
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "this is a command")]
async fn one(cli: &Cli, broker: BrokerKind) -> bool {
    let seed = cli.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let (store_name, broker_name) = (cli.store.name(), broker.name());
    let folder = std::env::temp_dir().join(format!("antiphon-faults-{store_name}-{broker_name}"));
    // What an earlier run left.
    let _ = std::fs::remove_dir_all(&folder);
    println!("\n==> {store_name} with {broker_name}, seed {seed}, logs in {}", folder.display());
    let options = Options {
        store: cli.store,
        broker,
        work: match cli.calm {
            Some(orders) => Work::Calm(orders),
            None => Work::Faults(Duration::from_secs_f64(cli.minutes * 60.0), cli.rate),
        },
        seed,
        folder,
        say: |line| println!("{line}"),
    };
    match run(&options).await {
        Ok(verdict) => tell(&verdict, seed),
        Err(error) => {
            println!("FAILED (seed {seed}): {error}");
            false
        }
    }
}

#[expect(clippy::print_stdout, reason = "this is a command")]
fn tell(verdict: &Verdict, seed: u64) -> bool {
    println!("\n{}", verdict.audit.trim_end());
    if verdict.bites.is_empty() {
        println!("\n  {} accepted orders, and nothing went wrong on purpose", verdict.accepted);
    } else {
        println!("\n  what the faults did, in {} accepted orders", verdict.accepted);
    }
    for bite in &verdict.bites {
        println!("  {bite}");
    }
    if verdict.ends > 0 {
        println!("  {:>8}  ends of processes that nobody asked for", verdict.ends);
    }
    let passed = verdict.passed();
    if passed {
        println!("\npassed (seed {seed})");
    } else if !verdict.holds {
        println!("\nFAILED (seed {seed}): an invariant does not hold");
    } else {
        let what: Vec<&str> = void(&verdict.bites).map(|bite| bite.what).collect();
        println!("\nFAILED (seed {seed}): void, without {}", what.join(", "));
    }
    passed
}
