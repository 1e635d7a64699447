//! Licences, known vulnerabilities and unwanted crates, by `cargo deny` and `deny.toml`.

use std::path::Path;

use crate::process::{cargo, run, works};

/// Runs the check if its program is installed; the note says which it was.
pub(super) fn check(root: &Path) -> Result<String, String> {
    if !root.join("deny.toml").exists() {
        return Err("deny.toml is missing".to_owned());
    }
    if !works("cargo", &["deny", "--version"]) {
        println!(
            "    cargo-deny is not installed, so licences, advisories and bans (deny.toml) were NOT \
             checked; `cargo install cargo-deny` brings it"
        );
        return Ok("licences and advisories NOT checked".to_owned());
    }
    run(&mut cargo(root, &["deny", "check"]))?;
    Ok("licences and advisories checked".to_owned())
}
