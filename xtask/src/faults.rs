//! `cargo xtask faults`: the shop under faults, with real engines, for as long as one likes.

use std::path::Path;

use clap::Args;

use crate::process::{cargo, run as run_command};
use crate::services::packages;
use crate::test::programs::ENGINES;

/// Everything with every engine, and a shop that acknowledges before it commits.
const ENGINES_WITH_BUG: &str = "shop/engines,antiphon-cli/engines,shop/faults-mutant";

/// Moves the clocks of processes.
const FAKE_CLOCK: &str = "libfaketime";
/// Where its library is.
const FAKE_CLOCK_FILES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
];

/// What goes wrong, with what.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Build the shop with a deliberate bug, an acknowledgement before the commit: the run must fail
    #[arg(long)]
    mutant: bool,
    /// What the run takes: --minutes N, --seed S, --store STORE, --broker BROKER[,…], --rate N,
    /// --calm ORDERS (nothing goes wrong)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    rest: Vec<String>,
}

pub(crate) fn run(root: &Path, options: &Options) -> bool {
    let result = clocks().and_then(|()| {
        // What the tests are built of, so that nothing is built twice.
        let features = if options.mutant { ENGINES_WITH_BUG } else { ENGINES };
        let mut build = vec!["build", "--workspace", "--bin", "shop", "--bin", "faults"];
        build.extend(["--features", features]);
        run_command(&mut cargo(root, &build))?;
        let run = ["run", "--quiet", "--bin", "faults", "--features", features, "--"];
        let mut command = cargo(root, &run);
        command.args(&options.rest);
        if options.mutant {
            command.env("SHOP_FAULTS_MUTANT", "ack-before-commit");
        }
        run_command(&mut command)
    });
    match (result, options.mutant) {
        (Ok(()), false) => true,
        (Ok(()), true) => {
            println!("the deliberate bug was not found: the harness proves nothing");
            false
        }
        (Err(why), false) => {
            println!("\n{why}");
            false
        }
        (Err(why), true) => {
            println!("\nthe deliberate bug was found, as it must be ({why})");
            true
        }
    }
}

/// Installs what moves clocks where that may be done; without it, clocks are left alone.
fn clocks() -> Result<(), String> {
    if FAKE_CLOCK_FILES.iter().any(|file| Path::new(file).exists()) {
        return Ok(());
    }
    if packages::can_install() {
        return packages::install([FAKE_CLOCK].into_iter());
    }
    println!("without {FAKE_CLOCK} no clock goes wrong (Debian: apt-get install {FAKE_CLOCK})");
    Ok(())
}
