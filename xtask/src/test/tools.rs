//! Tools of other languages for the interop tests.
//!
//! What the tests need is pinned in the repository: `tests/interop/python/requirements.txt`,
//! `tests/interop/node/package-lock.json` and `tests/interop/go/go.sum`. It is installed once into a
//! cache folder outside the repository, named by a hash of its pins, and handed to the tests as
//! variables:
//!
//! * `ANTIPHON_PYTHON`: the interpreter of a virtual environment with the packages;
//! * `ANTIPHON_NODE`: a folder with the scripts of `tests/interop/node` beside their `node_modules`;
//! * `ANTIPHON_GO`: the program that `tests/interop/go` is compiled to.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::programs::Variables;
use crate::process::{run, works};
use crate::services::packages as distribution;

const PYTHON: &str = "tests/interop/python";
const NODE: &str = "tests/interop/node";
const GO: &str = "tests/interop/go";
/// Written last, so that a folder without it is begun anew.
const READY: &str = ".ready";

/// Prepares everything; returns the variables for the tests.
pub(crate) fn prepare(root: &Path) -> Result<Variables, String> {
    let cache = cache_folder()?;
    have("curl", || works("curl", &["--version"]), &["curl"])?;
    let mut variables = Variables::new();
    if root.join(PYTHON).join("requirements.txt").exists() {
        variables.push(("ANTIPHON_PYTHON".to_owned(), python(root, &cache)?.into()));
    }
    if root.join(NODE).join("package-lock.json").exists() {
        variables.push(("ANTIPHON_NODE".to_owned(), node(root, &cache)?.into()));
    }
    if root.join(GO).join("go.sum").exists() {
        variables.push(("ANTIPHON_GO".to_owned(), go(root, &cache)?.into()));
    }
    Ok(variables)
}

fn python(root: &Path, cache: &Path) -> Result<PathBuf, String> {
    let pins = root.join(PYTHON).join("requirements.txt");
    let folder = cache.join(format!("python-{}", hash(&read(&pins)?)));
    let interpreter = folder.join("bin/python");
    if folder.join(READY).exists() {
        return Ok(interpreter);
    }
    let usable = || works("python3", &["-c", "import venv, ensurepip"]);
    have("Python 3 with venv", usable, &["python3", "python3-venv"])?;
    begin(&folder)?;
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder)).map_err(cannot_be_had)?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    run(Command::new(&interpreter).args(install).arg(&pins)).map_err(cannot_be_had)?;
    finish(&folder)?;
    Ok(interpreter)
}

fn node(root: &Path, cache: &Path) -> Result<PathBuf, String> {
    let source = root.join(NODE);
    let pins = read(&source.join("package-lock.json"))?;
    let folder = cache.join(format!("node-{}", hash(&pins)));
    if !folder.join(READY).exists() {
        let usable = || works("node", &["--version"]) && works("npm", &["--version"]);
        have("Node with npm", usable, &["nodejs", "npm"])?;
        begin(&folder)?;
        copy(&source, &folder)?;
        let install = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
        run(Command::new("npm").args(install).current_dir(&folder)).map_err(cannot_be_had)?;
        finish(&folder)?;
    }
    // Scripts find their modules only beside them, so they go where the modules are.
    copy(&source, &folder)?;
    Ok(folder)
}

/// Go compiles what has changed, and knows by itself what has not.
fn go(root: &Path, cache: &Path) -> Result<PathBuf, String> {
    let source = root.join(GO);
    have("Go", || works("go", &["version"]), &["golang-go"])?;
    let folder = cache.join(format!("go-{}", hash(&read(&source.join("go.sum"))?)));
    std::fs::create_dir_all(&folder).map_err(|error| trouble(&folder, &error))?;
    let program = folder.join("peer");
    let build = ["build", "-trimpath", "-o"];
    run(Command::new("go").args(build).arg(&program).arg(".").current_dir(&source))
        .map_err(cannot_be_had)?;
    Ok(program)
}

/// Makes sure that a tool works, from the distribution's packages if this user may install them.
fn have(what: &str, usable: impl Fn() -> bool, packages: &[&str]) -> Result<(), String> {
    if usable() {
        return Ok(());
    }
    let by_hand = format!(
        "{what} is not installed and the interop tests need it. Install it (Debian: apt-get install \
         {}), or leave these tests out with --embedded",
        packages.join(" ")
    );
    if !distribution::can_install() {
        return Err(by_hand);
    }
    distribution::install(packages.iter().copied())
        .map_err(|error| format!("{by_hand} ({error})"))?;
    if usable() { Ok(()) } else { Err(by_hand) }
}

fn cannot_be_had(error: String) -> String {
    format!(
        "{error}: the packages for the interop tests could not be installed. They come from PyPI, \
         the npm registry and Go's module proxy; without a way there, leave these tests out with \
         --embedded"
    )
}

fn cache_folder() -> Result<PathBuf, String> {
    let absolute = |name: &str| {
        std::env::var_os(name).map(PathBuf::from).filter(|folder| folder.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("antiphon/tools"))
        .ok_or_else(|| "neither XDG_CACHE_HOME nor HOME says where to keep tools".to_owned())
}

fn begin(folder: &Path) -> Result<(), String> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(|error| trouble(folder, &error))?;
    }
    std::fs::create_dir_all(folder).map_err(|error| trouble(folder, &error))
}

fn finish(folder: &Path) -> Result<(), String> {
    std::fs::write(folder.join(READY), "").map_err(|error| trouble(folder, &error))
}

/// Copies the files of a folder, and those of the folders in it, but no modules.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    for entry in std::fs::read_dir(from).map_err(|error| trouble(from, &error))? {
        let entry = entry.map_err(|error| trouble(from, &error))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_name() == "node_modules" {
            continue;
        }
        if source.is_dir() {
            std::fs::create_dir_all(&target).map_err(|error| trouble(&target, &error))?;
            copy(&source, &target)?;
        } else {
            std::fs::copy(&source, &target).map_err(|error| trouble(&target, &error))?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| trouble(path, &error))
}

fn trouble(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// FNV-1a with 64 bits: it names folders, it protects nothing.
fn hash(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_pins_have_another_folder() {
        assert_eq!(hash(b""), "cbf29ce484222325");
        assert_eq!(hash(b"a"), "af63dc4c8601ec8c");
        assert_ne!(hash(b"grpcio==1.76"), hash(b"grpcio==1.77"));
    }

    #[test]
    fn scripts_are_copied_and_modules_are_not() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir_all(from.path().join("node_modules/x")).unwrap();
        std::fs::create_dir_all(from.path().join("lib")).unwrap();
        std::fs::write(from.path().join("lib/call.mjs"), "1").unwrap();
        copy(from.path(), to.path()).unwrap();
        assert!(to.path().join("lib/call.mjs").exists());
        assert!(!to.path().join("node_modules").exists());
    }

    #[test]
    fn a_tool_that_cannot_be_had_is_told_with_the_way_out() {
        let error = cannot_be_had("`npm ci` failed".to_owned());
        assert!(error.contains("--embedded") && error.contains("npm registry"), "{error}");
    }
}
