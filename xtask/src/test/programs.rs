//! The test programs: built together, run one after the other; those that talk to different servers
//! run side by side.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Deserialize;

use test_servers::Service;

use super::engines::Needs;
use super::schedule;
use crate::process::{cargo, run_into};
use crate::summary::seconds;

/// A program that runs longer than this hangs.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// How much of a failed program's output is shown.
const LINES_SHOWN: usize = 200;

/// Which step runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Unit,
    Simulation,
    E2e,
    Interop,
    Engines,
}

/// What test programs are told.
pub(crate) type Variables = Vec<(String, OsString)>;

/// A test program.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) kind: Kind,
    /// Package and target: `antiphon-core`, `antiphon-telemetry/admin`.
    pub(crate) name: String,
    /// The servers that it talks to.
    pub(crate) needs: BTreeSet<Service>,
    executable: PathBuf,
    folder: PathBuf,
}

/// A line of `cargo … --message-format=json`, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// A program that was run.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) needs: BTreeSet<Service>,
    pub(crate) took: Duration,
    pub(crate) passed: u64,
    pub(crate) ok: bool,
}

/// The features of everything with every engine.
pub(crate) const ENGINES: &str = "shop/engines,antiphon-cli/engines";

/// What is built: everything with every engine, or, without some packages, what needs none. The same
/// for each step, so that nothing is built twice.
pub(crate) fn selection<'a>(without: &[&'a str]) -> Vec<&'a str> {
    if without.is_empty() {
        return vec!["--features", ENGINES];
    }
    without.iter().flat_map(|package| ["--exclude", package]).collect()
}

/// Builds the test programs of the workspace without some packages, and the binaries that they start.
pub(crate) fn build(root: &Path, needs: &Needs, without: &[&str]) -> Result<Vec<Program>, String> {
    let mut arguments =
        vec!["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"];
    arguments.extend(selection(without));
    println!("    $ cargo {}", arguments.join(" "));
    let output = cargo(root, &arguments)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    if !output.status.success() {
        return Err("the tests do not build".to_owned());
    }
    Ok(read(root, needs, &String::from_utf8_lossy(&output.stdout)))
}

/// Finds the test programs in what cargo says it built.
fn read(root: &Path, needs: &Needs, messages: &str) -> Vec<Program> {
    let mut programs: Vec<Program> = messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter_map(|message| program(root, needs, message))
        .collect();
    programs.sort_by(|one, other| one.name.cmp(&other.name));
    programs
}

fn program(root: &Path, needs: &Needs, message: Message) -> Option<Program> {
    if message.reason != "compiler-artifact" || !message.profile?.test {
        return None;
    }
    let folder = message.manifest_path?.parent()?.to_owned();
    let place = folder.strip_prefix(root).ok()?.to_string_lossy().replace('\\', "/");
    let target = message.target?;
    let package = folder.file_name()?.to_string_lossy().into_owned();
    let is_test = target.kind.iter().any(|kind| kind == "test");
    let needs = needs.of(&folder, &target.name).filter(|_| is_test);
    let kind = match place.as_str() {
        _ if needs.is_some() => Kind::Engines,
        "tests/simulation" => Kind::Simulation,
        "tests/interop" => Kind::Interop,
        place if is_test && (place.starts_with("examples/") || place == "tests/e2e") => Kind::E2e,
        _ => Kind::Unit,
    };
    let is_library = target.kind.iter().any(|kind| kind.ends_with("lib"));
    let name = if is_library { package } else { format!("{package}/{}", target.name) };
    let needs = needs.unwrap_or_default();
    Some(Program { kind, name, needs, executable: message.executable?, folder })
}

/// Runs programs; the note says how many tests passed, and names those that are switched off.
pub(crate) fn run(
    root: &Path,
    programs: &[&Program],
    filter: Option<&str>,
    variables: &Variables,
) -> (Result<String, String>, Vec<Done>) {
    let logs = target_folder(root).join("xtask");
    if let Err(error) = std::fs::create_dir_all(&logs) {
        return (Err(format!("{}: {error}", logs.display())), Vec::new());
    }
    let results = Mutex::new((Counts::default(), Vec::new(), Vec::new()));
    let one = |program: &Program| {
        let (counts, done) = run_one(program, &logs, filter, variables);
        if let Ok(mut results) = results.lock() {
            let (total, failed, all) = &mut *results;
            total.add(&counts);
            failed.extend((!done.ok).then(|| program.name.clone()));
            all.push(done);
        }
    };
    let (together, alone): (Vec<&Program>, Vec<&Program>) =
        programs.iter().partition(|program| program.kind == Kind::Engines);
    alone.into_iter().for_each(one);
    let together = together.into_iter().map(|program| (program.needs.clone(), program)).collect();
    schedule::run(together, |_, program| one(program));
    let (total, failed, all) = results.into_inner().unwrap_or_default();
    let verdict = match filter {
        Some(filter) if total == Counts::default() && failed.is_empty() => {
            Err(format!("no test's name contains {filter:?}"))
        }
        _ => total.verdict(programs.len(), &failed),
    };
    (verdict, all)
}

fn run_one(
    program: &Program,
    logs: &Path,
    filter: Option<&str>,
    variables: &Variables,
) -> (Counts, Done) {
    let log = logs.join(format!("{}.log", program.name.replace('/', "-")));
    let mut command = Command::new(&program.executable);
    command.current_dir(&program.folder).env("CARGO_MANIFEST_DIR", &program.folder);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command.args(filter);
    let begun = Instant::now();
    let result = run_into(&mut command, &log, LIMIT);
    let took = begun.elapsed();
    let text = std::fs::read(&log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let counts = count(&text);
    let (ended, shown) = (if result.is_ok() { "ok" } else { "FAILED" }, seconds(took));
    println!("    {ended:<6}  {:<44} {:>4} tests  {shown:>8}", program.name, counts.passed);
    if let Err(why) = &result {
        println!("{}\n    {why}\n    the whole output: {}", tail(&text), log.display());
    }
    let (passed, ok) = (counts.passed, result.is_ok());
    (counts, Done { needs: program.needs.clone(), took, passed, ok })
}

/// Tests of one or several programs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    ignored: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.ignored += other.ignored;
    }

    fn verdict(&self, programs: usize, failed: &[String]) -> Result<String, String> {
        if !failed.is_empty() {
            return Err(format!(
                "{} of {programs} programs failed: {}",
                failed.len(),
                failed.join(", ")
            ));
        }
        let off = match self.ignored {
            0 => String::new(),
            n => format!(", {n} are marked #[ignore] and were NOT run"),
        };
        Ok(format!("{} tests in {programs} programs{off}", self.passed))
    }
}

/// Adds up the lines `test result: ok. 26 passed; 0 failed; 0 ignored; …`.
fn count(text: &str) -> Counts {
    let mut counts = Counts::default();
    for line in text.lines().filter(|line| line.starts_with("test result:")) {
        let words: Vec<&str> =
            line.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let number = pair[0].parse().unwrap_or(0);
            match pair[1] {
                "passed" => counts.passed += number,
                "ignored" => counts.ignored += number,
                _ => {}
            }
        }
    }
    counts
}

/// The end of an output, without the lines of tests that passed.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.ends_with("... ok")).collect();
    lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
}

/// Where cargo builds.
fn target_folder(root: &Path) -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root.join(folder),
        None => root.join("target"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_what_cargo_says() {
        let artifact = |place: &str, target: &str, kind: &str, test: bool| {
            serde_json::json!({
                "reason": "compiler-artifact",
                "manifest_path": format!("/repo/{place}/Cargo.toml"),
                "target": { "name": target, "kind": [kind] },
                "profile": { "test": test },
                "executable": "/target/x",
            })
            .to_string()
        };
        let messages = [
            artifact("crates/antiphon-core", "antiphon_core", "lib", true),
            artifact("crates/antiphon-core", "antiphon_core", "lib", false),
            artifact("crates/antiphon-telemetry", "admin", "test", true),
            artifact("tests/interop", "python", "test", true),
            artifact("tests/simulation", "simulation", "lib", true),
            artifact("examples/shop", "e2e", "test", true),
            artifact("examples/shop", "shop", "bin", true),
            "{\"reason\":\"build-finished\",\"success\":true}".to_owned(),
            "not json".to_owned(),
        ];
        let found = read(Path::new("/repo"), &Needs::default(), &messages.join("\n"));
        let found: Vec<_> = found.iter().map(|program| (&*program.name, program.kind)).collect();
        let expected = [
            ("antiphon-core", Kind::Unit),
            ("antiphon-telemetry/admin", Kind::Unit),
            ("interop/python", Kind::Interop),
            ("shop/e2e", Kind::E2e),
            ("shop/shop", Kind::Unit),
            ("simulation", Kind::Simulation),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn tests_that_are_switched_off_are_told() {
        let text = "test result: ok. 26 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out\n\
                    test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured\n";
        let counts = count(text);
        assert_eq!(counts, Counts { passed: 29, ignored: 2 });
        assert!(
            counts.verdict(2, &[]).unwrap().contains("2 are marked #[ignore] and were NOT run")
        );
        assert!(counts.verdict(2, &["x".to_owned()]).is_err());
    }

    #[test]
    fn the_shown_output_leaves_out_what_passed() {
        assert_eq!(tail("test a ... ok\ntest b ... FAILED\nboom\n"), "test b ... FAILED\nboom");
    }

    #[test]
    fn a_program_that_hangs_is_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("60");
        let log = folder.path().join("log");
        let error = run_into(&mut command, &log, Duration::from_millis(50)).unwrap_err();
        assert!(error.contains("stopped"), "{error}");
    }
}
