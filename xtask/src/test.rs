//! `cargo xtask test`: everything that is checked and tested.

mod engines;
mod prerequisites;
pub(crate) mod programs;
mod schedule;
mod tools;

use std::collections::BTreeSet;
use std::path::Path;

use clap::{Args, ValueEnum};

use crate::process::{cargo, run as run_command};
use crate::summary::Summary;
use crate::tidy;
use engines::{Engines, Needs};
use programs::{Done, Kind, Program, Variables};

/// What is tested.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Run only what needs nothing but the Rust toolchain: no server that is not part of the build, no
    /// tools of other languages
    #[arg(long)]
    embedded: bool,
    /// Run only these steps, separated by commas; without it, all of them
    #[arg(long, value_delimiter = ',', value_name = "STEP")]
    only: Vec<Step>,
    /// Run only the test programs whose name contains this, with the tests named behind it: `relay`, or
    /// `relay some_test`
    #[arg(value_name = "PROGRAM")]
    filter: Option<String>,
    /// Run only tests whose name contains this
    #[arg(value_name = "TEST", requires = "filter")]
    test: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    /// What the build needs beside Rust is there
    Prerequisites,
    /// The format of the code
    Format,
    /// The house rules
    Tidy,
    /// Lints, of all targets
    Clippy,
    /// The documentation builds without warnings
    Doc,
    /// Tests beside the code, of all crates and adapters
    Unit,
    /// Examples in the documentation
    Doctest,
    /// Seeded simulation in virtual time
    Simulation,
    /// The shop as processes: routes, kills, traces
    E2e,
    /// Clients of other languages
    Interop,
    /// Stores, brokers and faults against real servers
    Engines,
}

impl Step {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn kind(self) -> Option<Kind> {
        match self {
            Self::Unit => Some(Kind::Unit),
            Self::Simulation => Some(Kind::Simulation),
            Self::E2e => Some(Kind::E2e),
            Self::Interop => Some(Kind::Interop),
            Self::Engines => Some(Kind::Engines),
            Self::Prerequisites
            | Self::Format
            | Self::Tidy
            | Self::Clippy
            | Self::Doc
            | Self::Doctest => None,
        }
    }

    /// Whether it compiles the adapters.
    fn compiles(self) -> bool {
        !matches!(self, Self::Prerequisites | Self::Format | Self::Tidy)
    }
}

/// Why a step is not run, if it is not.
fn left_out(step: Step, options: &Options) -> Option<&'static str> {
    let asked = |step: &Step| options.only.is_empty() || options.only.contains(step);
    if step == Step::Prerequisites
        && Step::value_variants().iter().any(|s| s.compiles() && asked(s))
    {
        options.embedded.then_some("--embedded: nothing but Rust is built")
    } else if !asked(&step) {
        Some("not in --only")
    } else if options.filter.is_some() && step.kind().is_none() {
        Some("only test programs were asked for")
    } else if options.embedded && step == Step::Interop {
        Some("--embedded: needs Python, Node, Go and curl")
    } else if options.embedded && step == Step::Engines {
        Some(
            "--embedded: needs PostgreSQL, MariaDB, NATS, Kafka, RabbitMQ, Mosquitto, Redis, etcd, \
             ZooKeeper, Consul, Knot DNS and Kubernetes",
        )
    } else {
        None
    }
}

pub(crate) fn run(root: &Path, options: &Options) -> bool {
    let mut summary = Summary::default();
    let mut built = None;
    let mut engines = String::new();
    let needs = Needs::read(root);
    for step in Step::value_variants() {
        let step = *step;
        let name = step.name();
        if let Some(why) = left_out(step, options) {
            summary.left_out(&name, why);
            continue;
        }
        let Ok(needs) = &needs else {
            summary.step(&name, || needs.as_ref().map(|_| String::new()).map_err(String::clone));
            continue;
        };
        let without = if options.embedded { needs.whole_packages() } else { Vec::new() };
        let Some(kind) = step.kind() else {
            summary.step(&name, || check(root, step, &without));
            continue;
        };
        // All test programs are built in one go: building them by package would build what they share
        // several times, with different features.
        let programs =
            built.get_or_insert_with(|| build(root, options, needs, &without, &mut summary));
        match programs {
            None => summary.step(&name, || Err("not run: the tests do not build".to_owned())),
            Some(programs)
                if options.filter.is_some() && !programs.iter().any(|p| p.kind == kind) =>
            {
                summary.left_out(&name, "no program of that name");
            }
            Some(programs) => {
                summary.step(&name, || test(root, kind, programs, options, &mut engines));
            }
        }
    }
    println!("{}{engines}", summary.table());
    summary.passed()
}

/// Builds the test programs, and keeps those that were asked for.
fn build(
    root: &Path,
    options: &Options,
    needs: &Needs,
    without: &[&str],
    summary: &mut Summary,
) -> Option<Vec<Program>> {
    let mut built = None;
    summary.step("build", || {
        let mut programs = programs::build(root, needs, without)?;
        if let Some(filter) = &options.filter {
            programs.retain(|program| program.name.contains(filter.as_str()));
        }
        let count = programs.len();
        built = Some(programs);
        match (count, &options.filter) {
            (0, Some(filter)) => Err(format!("no test program's name contains {filter:?}")),
            _ => Ok(format!("{count} test programs")),
        }
    });
    built
}

fn check(root: &Path, step: Step, without: &[&str]) -> Result<String, String> {
    let (arguments, behind): (&[&str], &[&str]) = match step {
        Step::Format => (&["fmt", "--all", "--", "--check", "--files-with-diff"], &[]),
        Step::Clippy => (&["clippy", "--workspace", "--all-targets"], &["--", "-D", "warnings"]),
        Step::Doc => (&["doc", "--workspace", "--no-deps"], &[]),
        Step::Doctest => (&["test", "--workspace", "--doc", "--quiet"], &[]),
        Step::Tidy => return tidy::check(root),
        Step::Prerequisites => return prerequisites::ensure(),
        Step::Unit | Step::Simulation | Step::E2e | Step::Interop | Step::Engines => {
            return Err("not a check".to_owned());
        }
    };
    let mut command = cargo(root, arguments);
    if step != Step::Format {
        command.args(programs::selection(without));
    }
    command.args(behind);
    if step == Step::Doc {
        command.env("RUSTDOCFLAGS", "-D warnings");
    }
    let hint = if step == Step::Format { "; `cargo fmt --all` mends it" } else { "" };
    run_command(&mut command).map(|()| String::new()).map_err(|error| format!("{error}{hint}"))
}

fn test(
    root: &Path,
    kind: Kind,
    programs: &[Program],
    options: &Options,
    engines: &mut String,
) -> Result<String, String> {
    let chosen: Vec<&Program> = programs.iter().filter(|program| program.kind == kind).collect();
    if chosen.is_empty() {
        return Err("there is no test program for this step".to_owned());
    }
    let filter = options.test.as_deref();
    match kind {
        Kind::Engines => {
            let mut servers = Engines::default();
            let needed: BTreeSet<_> =
                chosen.iter().flat_map(|program| program.needs.iter().copied()).collect();
            servers.up(root, &needed)?;
            let (result, done): (_, Vec<Done>) =
                programs::run(root, &chosen, filter, &servers.variables());
            *engines = servers.table(&done);
            result
        }
        Kind::Interop => programs::run(root, &chosen, filter, &tools::prepare(root)?).0,
        Kind::Unit | Kind::Simulation | Kind::E2e => {
            programs::run(root, &chosen, filter, &Variables::new()).0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(only: &[Step], embedded: bool, filter: Option<&str>) -> Options {
        let filter = filter.map(str::to_owned);
        Options { embedded, only: only.to_vec(), filter, test: None }
    }

    #[test]
    fn steps_are_left_out_only_for_a_reason() {
        let all = options(&[], false, None);
        assert!(Step::value_variants().iter().all(|step| left_out(*step, &all).is_none()));
        let embedded = options(&[], true, None);
        let out: Vec<_> = Step::value_variants()
            .iter()
            .filter(|step| left_out(**step, &embedded).is_some())
            .collect();
        assert_eq!(out, [&Step::Prerequisites, &Step::Interop, &Step::Engines]);
        let only = options(&[Step::Tidy], false, None);
        assert_eq!(left_out(Step::Tidy, &only), None);
        assert_eq!(left_out(Step::Unit, &only), Some("not in --only"));
        assert_eq!(left_out(Step::Prerequisites, &only), Some("not in --only"));
        let compiling = options(&[Step::Unit], false, None);
        assert_eq!(left_out(Step::Prerequisites, &compiling), None);
        let filtered = options(&[], false, Some("relay"));
        assert_eq!(left_out(Step::Unit, &filtered), None);
        assert!(left_out(Step::Clippy, &filtered).is_some());
        assert_eq!(left_out(Step::Prerequisites, &filtered), None);
    }
}
