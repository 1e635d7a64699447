//! Brokers and outbox: the adapters' own measuring programs, in one run.

use std::process::Command;

use antiphon_core::BoxError;

use crate::report::{progress, verbatim};

/// Packages and their measuring examples.
const PROGRAMS: [(&str, &str); 2] =
    [("antiphon-broker-memory", "throughput"), ("antiphon-store-sqlite", "sql_throughput")];

/// Runs them and shows what they print.
pub(crate) fn run() -> Result<(), BoxError> {
    for (package, example) in PROGRAMS {
        progress(&format!("messaging: {package}"));
        let output = Command::new("cargo")
            .args(["run", "--release", "--quiet", "--package", package, "--example", example])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{package}: {}: {error}", output.status).into());
        }
        verbatim(&format!("Messages: {package}"), text.trim());
    }
    Ok(())
}
