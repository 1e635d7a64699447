//! Installs what is missing, where this is root and Debian.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::process::{run_into, works};

/// Asked by packages before they start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Ours: nothing is started by being installed.
const REFUSE: &str =
    "#!/bin/sh\n# Written by `cargo xtask services`, which removes it again.\nexit 101\n";
const LIMIT: std::time::Duration = std::time::Duration::from_secs(15 * 60);

/// Whether this user may install packages.
pub(crate) fn can_install() -> bool {
    works("apt-get", &["--version"]) && works("test", &["-w", "/var/lib/dpkg"])
}

/// Installs packages; none of their services is started.
pub(crate) fn install<'a>(packages: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let packages: BTreeSet<&str> = packages.collect();
    let names = packages.iter().copied().collect::<Vec<_>>().join(" ");
    println!("    installing {names} …");
    let log = std::env::temp_dir().join(format!("antiphon-install-{}.log", std::process::id()));
    let refused = refuse_starts(Path::new(POLICY))?;
    let result = apt(&["update", "-qq"], &log).and_then(|()| {
        let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
        arguments.extend(packages);
        apt(&arguments, &log)
    });
    if refused {
        let removed = fs::remove_file(POLICY);
        removed.map_err(|error| format!("{POLICY} has to be removed by hand: {error}"))?;
    }
    if let Err(why) = result {
        let said = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = said.lines().rev().take(20).collect();
        let end = lines.into_iter().rev().collect::<Vec<_>>().join("\n  | ");
        return Err(format!("{names} cannot be installed: {why}\n  | {end}"));
    }
    // It is only good for a failure.
    let _ = fs::remove_file(log);
    Ok(())
}

fn apt(arguments: &[&str], log: &Path) -> Result<(), String> {
    let mut command = Command::new("apt-get");
    // Somebody else may be installing something in this moment.
    command.args(["-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"]);
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    run_into(&mut command, log, LIMIT)
}

/// Makes packages start nothing; tells whether that has to be taken back. A rule that somebody else
/// made stays; one of ours may be there after an interruption.
fn refuse_starts(policy: &Path) -> Result<bool, String> {
    let trouble = |error: std::io::Error| format!("{}: {error}", policy.display());
    match fs::read_to_string(policy) {
        Ok(there) => return Ok(there == REFUSE),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(trouble(error)),
    }
    fs::write(policy, REFUSE).map_err(trouble)?;
    fs::set_permissions(policy, fs::Permissions::from_mode(0o755)).map_err(trouble)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_of_somebody_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy-rc.d");
        assert_eq!(refuse_starts(&policy), Ok(true));
        // Left behind by an interruption.
        assert_eq!(refuse_starts(&policy), Ok(true));
        fs::write(&policy, "#!/bin/sh\nexit 0\n").unwrap();
        assert_eq!(refuse_starts(&policy), Ok(false));
        assert_eq!(fs::read_to_string(&policy).unwrap(), "#!/bin/sh\nexit 0\n");
    }
}
