//! `cargo xtask test`: everything that is checked and tested.

mod programs;
mod tools;

use std::path::Path;

use clap::{Args, ValueEnum};

use crate::process::{cargo, run as run_command};
use crate::summary::Summary;
use crate::tidy;
use programs::Kind;

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
            Self::Format | Self::Tidy | Self::Clippy | Self::Doc | Self::Doctest => None,
        }
    }
}

/// Why a step is not run, if it is not.
fn left_out(step: Step, options: &Options) -> Option<&'static str> {
    if !options.only.is_empty() && !options.only.contains(&step) {
        Some("not in --only")
    } else if options.filter.is_some() && step.kind().is_none() {
        Some("only test programs were asked for")
    } else if options.embedded && step == Step::Interop {
        Some("--embedded: needs Python, Node and curl")
    } else {
        None
    }
}

pub(crate) fn run(root: &Path, options: &Options) -> bool {
    let mut summary = Summary::default();
    let mut built = None;
    for step in Step::value_variants() {
        let step = *step;
        let name = step.name();
        if let Some(why) = left_out(step, options) {
            summary.left_out(&name, why);
            continue;
        }
        match step.kind() {
            None => summary.step(&name, || check(root, step)),
            Some(kind) => {
                // All test programs are built in one go: building them by package would build what
                // they share several times, with different features.
                if built.is_none() {
                    let mut programs = Vec::new();
                    summary.step("build", || {
                        programs = programs::build(root)?;
                        Ok(format!("{} test programs", programs.len()))
                    });
                    built = Some(programs);
                }
                let programs = built.as_deref().unwrap_or_default();
                summary.step(&name, || test(root, kind, programs, options));
            }
        }
    }
    println!("{}", summary.table());
    summary.passed()
}

fn check(root: &Path, step: Step) -> Result<String, String> {
    let arguments: &[&str] = match step {
        Step::Format => &["fmt", "--all", "--", "--check", "--files-with-diff"],
        Step::Clippy => &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        Step::Doc => &["doc", "--workspace", "--no-deps"],
        Step::Doctest => &["test", "--workspace", "--doc", "--quiet"],
        Step::Tidy => return tidy::check(root),
        Step::Unit | Step::Simulation | Step::E2e | Step::Interop => {
            return Err("not a check".to_owned());
        }
    };
    let mut command = cargo(root, arguments);
    if step == Step::Doc {
        command.env("RUSTDOCFLAGS", "-D warnings");
    }
    let hint = if step == Step::Format { "; `cargo fmt --all` mends it" } else { "" };
    run_command(&mut command).map(|()| String::new()).map_err(|error| format!("{error}{hint}"))
}

fn test(
    root: &Path,
    kind: Kind,
    programs: &[programs::Program],
    options: &Options,
) -> Result<String, String> {
    let mut variables = Vec::new();
    if kind == Kind::Interop {
        variables = tools::prepare(root)?;
    }
    let chosen: Vec<&programs::Program> = programs
        .iter()
        .filter(|program| program.kind == kind)
        .filter(|program| options.filter.as_ref().is_none_or(|name| program.name.contains(name)))
        .collect();
    if chosen.is_empty() && options.filter.is_none() {
        return Err("no test program was built for this step".to_owned());
    }
    programs::run(root, &chosen, options.test.as_deref(), &variables)
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
        assert_eq!(out, [&Step::Interop]);
        let only = options(&[Step::Tidy], false, None);
        assert_eq!(left_out(Step::Tidy, &only), None);
        assert_eq!(left_out(Step::Unit, &only), Some("not in --only"));
        let filtered = options(&[], false, Some("relay"));
        assert_eq!(left_out(Step::Unit, &filtered), None);
        assert!(left_out(Step::Clippy, &filtered).is_some());
    }
}
