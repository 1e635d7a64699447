//! What every source file begins with, how long it is, and what must not be in it.

use super::Violation;
use super::workspace::Files;

/// A file above this is split.
const LINES_MAX: usize = 800;

/// Words that stand for work that is not done. Written in two parts, so that this file may be checked.
const BANNED: [(&str, &str); 5] = [
    (concat!("to", "do!("), "finish it"),
    (concat!("unimple", "mented!("), "finish it, or answer that it is not supported"),
    (concat!("db", "g!("), "remove it"),
    (concat!("TO", "DO"), "do it, or write it where work is planned"),
    (concat!("FIX", "ME"), "fix it"),
];

pub(super) fn check(files: &Files) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in files {
        let Some(text) = text.as_deref().filter(|_| is_ours(path)) else {
            continue;
        };
        if !text.starts_with("//!") {
            let words =
                "does not begin with `//!`: say what it is, why it is there, what holds in it";
            violations.push(Violation::new(path, 1, words));
        }
        if path.ends_with("/mod.rs") {
            let words = "is a mod.rs: name the file after its folder, beside the folder";
            violations.push(Violation::new(path, 0, words));
        }
        let lines = text.lines().count();
        if lines > LINES_MAX {
            let words = format!("has {lines} lines, {LINES_MAX} are the most: split it by subject");
            violations.push(Violation::new(path, 0, words));
        }
        for (number, line) in text.lines().enumerate() {
            for (word, instead) in BANNED {
                if line.contains(word) {
                    let words = format!("`{word}` must not stay: {instead}");
                    violations.push(Violation::new(path, number + 1, words));
                }
            }
        }
    }
    violations
}

/// Rust code that somebody wrote.
fn is_ours(path: &str) -> bool {
    path.ends_with(".rs") && !path.split('/').any(|folder| folder == "generated")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(path: &str, text: &str) -> Vec<String> {
        let files = Files::from([(path.to_owned(), Some(text.to_owned()))]);
        check(&files).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_says_what_it_is() {
        assert_eq!(broken("src/a.rs", "//! What it is.\n"), [""; 0]);
        assert!(broken("src/a.rs", "use std::fmt;\n")[0].starts_with("src/a.rs:1: does not begin"));
        assert_eq!(broken("src/generated/a.rs", "use std::fmt;\n"), [""; 0]);
        assert_eq!(broken("a.py", "import os\n"), [""; 0]);
    }

    #[test]
    fn a_file_is_not_endless() {
        let long = "//! Long.\n".repeat(LINES_MAX + 1);
        assert_eq!(
            broken("a.rs", &long),
            ["a.rs: has 801 lines, 800 are the most: split it by subject"]
        );
    }

    #[test]
    fn unfinished_work_does_not_stay() {
        for (word, _) in BANNED {
            let text = format!("//! File.\n    {word}\n");
            let broken = broken("a.rs", &text);
            assert!(broken[0].starts_with("a.rs:2: "), "{word}: {broken:?}");
        }
    }

    #[test]
    fn modules_have_names() {
        assert!(broken("src/x/mod.rs", "//! X.\n")[0].contains("is a mod.rs"));
    }
}
