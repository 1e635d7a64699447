//! A short run for each engine. `cargo xtask faults` runs longer ones.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on panics"
)]

use std::time::Duration;

use fault_tests::engine::{BrokerKind, StoreKind};
use fault_tests::run::{Options, Work, run};

/// Runs one pair for as long as tests may take, and fails with everything that was said.
async fn survives(store: StoreKind, broker: BrokerKind, seed: u64) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        store,
        broker,
        work: Work::Faults(Duration::from_secs(40), 30),
        seed,
        folder: folder.path().to_owned(),
        say: |line| println!("{line}"),
    };
    let verdict = match run(&options).await {
        Ok(verdict) => verdict,
        Err(error) => {
            let kept = folder.keep();
            panic!("seed {seed}, logs in {}: {error}", kept.display());
        }
    };
    println!("{}", verdict.audit);
    verdict.bites.iter().for_each(|bite| println!("{bite}"));
    if !verdict.passed() {
        let kept = folder.keep();
        panic!("seed {seed}, logs in {}: see above", kept.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_alone() {
    survives(StoreKind::Postgres, BrokerKind::Sql, 3).await;
}
