//! `cargo xtask tidy`: the house rules that the compiler does not know.
//!
//! Each rule is a function from what is there to what is wrong with it, in a file of its own with a
//! sample that breaks it.

mod adapters;
mod advisories;
mod documents;
mod graph;
mod map;
mod sources;
mod workspace;

use std::fmt;
use std::path::Path;

use crate::summary::Summary;
use workspace::Workspace;

/// A rule that is broken, where, and what to do.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    /// A path from the root of the repository.
    place: String,
    /// Counted from one; 0 when the whole file is meant.
    line: usize,
    words: String,
}

impl Violation {
    fn new(place: impl Into<String>, line: usize, words: impl Into<String>) -> Self {
        Self { place: place.into(), line, words: words.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.place, self.words),
            line => write!(f, "{}:{line}: {}", self.place, self.words),
        }
    }
}

/// Checks everything and prints a summary.
pub(crate) fn run(root: &Path) -> bool {
    let mut summary = Summary::default();
    summary.step("tidy", || check(root));
    println!("{}", summary.table());
    summary.passed()
}

/// Checks everything; the note says how much that was.
pub(crate) fn check(root: &Path) -> Result<String, String> {
    let workspace = Workspace::read(root)?;
    let mut violations = Vec::new();
    violations.extend(graph::check(&workspace.packages));
    violations.extend(adapters::check(&workspace.packages, &workspace.files));
    violations.extend(map::check(&workspace.packages, &workspace.files));
    violations.extend(sources::check(&workspace.files));
    violations.extend(documents::check(&workspace.files));
    violations.extend(workspace::check_lock(root));
    violations.sort();
    for violation in &violations {
        println!("    {violation}");
    }
    let deny = advisories::check(root)?;
    match violations.len() {
        0 => {
            let (packages, files) = (workspace.packages.len(), workspace.files.len());
            Ok(format!("{packages} packages, {files} files; {deny}"))
        }
        1 => Err("1 rule is broken".to_owned()),
        n => Err(format!("{n} rules are broken")),
    }
}
