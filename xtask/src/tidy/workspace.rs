//! What there is to check: the packages of the workspace, and the files that git knows.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::Violation;
use crate::process::{capture, cargo};

/// Everything that rules look at.
#[derive(Debug)]
pub(super) struct Workspace {
    pub(super) packages: Vec<Package>,
    pub(super) files: Files,
}

/// Path from the root, and content; `None` for what is not text.
pub(super) type Files = BTreeMap<String, Option<String>>;

/// A package of the workspace.
#[derive(Clone, Debug)]
pub(super) struct Package {
    pub(super) name: String,
    /// Its folder, from the root: `crates/antiphon-core`.
    pub(super) folder: String,
    pub(super) dependencies: Vec<Dependency>,
}

/// What a package depends on.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Dependency {
    pub(super) name: String,
    /// `dev`, `build`, or nothing for what is linked.
    pub(super) kind: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
}

#[derive(Deserialize)]
struct MetadataPackage {
    name: String,
    manifest_path: std::path::PathBuf,
    dependencies: Vec<Dependency>,
}

impl Workspace {
    pub(super) fn read(root: &Path) -> Result<Self, String> {
        let arguments = ["metadata", "--no-deps", "--format-version", "1"];
        let metadata = capture(&mut cargo(root, &arguments))?;
        let metadata: Metadata =
            serde_json::from_str(&metadata).map_err(|error| format!("cargo metadata: {error}"))?;
        let packages = metadata.packages.into_iter().map(|package| {
            let folder = package.manifest_path.parent().unwrap_or(root);
            let folder = folder.strip_prefix(root).unwrap_or(folder);
            let folder = folder.to_string_lossy().replace('\\', "/");
            Package { name: package.name, folder, dependencies: package.dependencies }
        });
        let packages = packages.collect();
        Ok(Self { packages, files: read_files(root)? })
    }
}

/// Cargo.lock says what the manifests ask for: otherwise a fresh clone builds something else.
pub(super) fn check_lock(root: &Path) -> Option<Violation> {
    let arguments = ["metadata", "--locked", "--format-version", "1"];
    let agrees = cargo(root, &arguments).output().is_ok_and(|output| output.status.success());
    let words = "does not agree with the manifests: build once and commit it";
    (!agrees).then(|| Violation::new("Cargo.lock", 0, words))
}

/// Every file that is part of the repository or about to be: not what git ignores.
fn read_files(root: &Path) -> Result<Files, String> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard", "-z"];
    let mut git = std::process::Command::new("git");
    let names = capture(git.current_dir(root).args(arguments))?;
    let mut files = Files::new();
    for name in names.split('\0').filter(|name| !name.is_empty()) {
        // What was removed and not committed is still listed.
        if let Ok(bytes) = std::fs::read(root.join(name)) {
            files.insert(name.to_owned(), String::from_utf8(bytes).ok());
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_does_not_agree_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = "[package]\nname = \"sample\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
        std::fs::write(folder.path().join("Cargo.toml"), manifest).unwrap();
        std::fs::create_dir(folder.path().join("src")).unwrap();
        std::fs::write(folder.path().join("src/lib.rs"), "").unwrap();
        let violation = check_lock(folder.path()).unwrap();
        assert!(violation.to_string().starts_with("Cargo.lock: does not agree"));
        let lock = "version = 4\n\n[[package]]\nname = \"sample\"\nversion = \"0.1.0\"\n";
        std::fs::write(folder.path().join("Cargo.lock"), lock).unwrap();
        assert_eq!(check_lock(folder.path()), None);
    }
}
