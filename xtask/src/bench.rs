//! `cargo xtask bench`: the speed of everything against the bare parts, in one run.

use std::path::Path;

use clap::Args;

use crate::process::{capture, cargo};
use crate::summary::Summary;

/// The page with the figures.
const PAGE: &str = "docs/performance.md";
/// The part of the page that is written by this command stands between these lines.
const BEGIN: &str = "<!-- begin: written by cargo xtask bench --write -->";
const END: &str = "<!-- end -->";
/// What a table begins with.
const TITLE: &str = "### ";

/// What is measured.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The benches to run; without any, all of them
    #[arg(value_name = "BENCH")]
    benches: Vec<String>,
    /// Rounds; medians are shown
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Seconds that everything is under load in each round
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Put the tables into docs/performance.md, in the places of those with the same titles
    #[arg(long)]
    write: bool,
}

pub(crate) fn run(root: &Path, options: &Options) -> bool {
    let mut summary = Summary::default();
    let mut tables = String::new();
    summary.step("build", || {
        let arguments = ["build", "--release", "--package", "antiphon-benches"];
        crate::process::run(&mut cargo(root, &arguments)).map(|()| String::new())
    });
    if summary.passed() {
        summary.step("bench", || {
            tables = measure(root, options)?;
            println!("{tables}");
            Ok(String::new())
        });
    }
    if options.write && summary.passed() {
        summary.step("write", || {
            write(root, &tables)?;
            Ok(PAGE.to_owned())
        });
    }
    println!("{}", summary.table());
    summary.passed()
}

fn measure(root: &Path, options: &Options) -> Result<String, String> {
    let mut command =
        cargo(root, &["run", "--release", "--quiet", "--package", "antiphon-benches", "--", "run"]);
    command.args(&options.benches);
    if let Some(rounds) = options.rounds {
        command.arg("--rounds").arg(rounds.to_string());
    }
    if let Some(seconds) = options.seconds {
        command.arg("--seconds").arg(seconds.to_string());
    }
    capture(&mut command)
}

fn write(root: &Path, tables: &str) -> Result<(), String> {
    let path = root.join(PAGE);
    let trouble = |error: std::io::Error| format!("{PAGE}: {error}");
    let page = std::fs::read_to_string(&path).map_err(trouble)?;
    let machine = machine();
    let tables = merge(inside(&page)?, tables);
    let page = replace(&page, &format!("{machine}\n{tables}"))?;
    std::fs::write(&path, page).map_err(trouble)
}

/// The new tables in the places of the old ones with their titles; what has no such place comes last.
fn merge(old: &str, new: &str) -> String {
    let mut new = sections(new);
    let mut all: Vec<(&str, &str)> = sections(old);
    for (title, text) in &mut all {
        if let Some(at) = new.iter().position(|(known, _)| known == title) {
            *text = new.remove(at).1;
        }
    }
    all.extend(new);
    let texts: Vec<String> =
        all.iter().map(|(title, text)| format!("{TITLE}{title}\n{}", text.trim_end())).collect();
    texts.join("\n\n")
}

/// Titles, and what is below each.
fn sections(text: &str) -> Vec<(&str, &str)> {
    let parts = text.split(TITLE).skip(1);
    parts.map(|part| part.split_once('\n').unwrap_or((part, ""))).collect()
}

/// What is between the marks of the page.
fn inside(page: &str) -> Result<&str, String> {
    let marked = page.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    marked.map(|(text, _)| text).ok_or_else(|| {
        format!("{PAGE} has no line `{BEGIN}` with a line `{END}` below it: add them")
    })
}

/// Puts `text` between the marks of the page.
fn replace(page: &str, text: &str) -> Result<String, String> {
    let old = inside(page)?;
    let marked = format!("{BEGIN}{old}{END}");
    Ok(page.replacen(&marked, &format!("{BEGIN}\n\n{text}\n\n{END}"), 1))
}

/// One sentence about the machine: figures without it say nothing.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let model = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let model = model.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    format!("Measured on {cores} cores of {model}, {}.\n", std::env::consts::OS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_marked_part_of_the_page_is_written() {
        let page = format!("# Speed\n\n{BEGIN}\nold\n{END}\n\nHow it is measured.\n");
        let written = replace(&page, "| new |").unwrap();
        let expected = format!("# Speed\n\n{BEGIN}\n\n| new |\n\n{END}\n\nHow it is measured.\n");
        assert_eq!(written, expected);
        assert_eq!(replace(&written, "| new |").unwrap(), expected);
    }

    #[test]
    fn a_table_takes_the_place_of_the_one_with_its_title() {
        let old = "On a machine.\n\n### One\n\n1\n\n### Two\n\n2\n";
        let new = "\n### Two\n\n22\n\n### Three\n\n3\n";
        assert_eq!(merge(old, new), "### One\n\n1\n\n### Two\n\n22\n\n### Three\n\n3");
        assert_eq!(merge("", new), "### Two\n\n22\n\n### Three\n\n3");
    }

    #[test]
    fn a_page_without_marks_is_left_alone() {
        assert!(replace("# Speed\n", "x").unwrap_err().contains("add them"));
        assert!(replace(&format!("{END}{BEGIN}"), "x").is_err());
    }
}
