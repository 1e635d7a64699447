//! ARCHITECTURE.md is a map: everything that is there is on it, and nothing else.

use super::Violation;
use super::workspace::{Files, Package};

const MAP: &str = "ARCHITECTURE.md";
/// What begins a path in the map.
const KINDS: [&str; 6] = ["crates/", "adapters/", "apps/", "examples/", "tests/", "docs/"];
/// Files that a repository of this kind has.
const PAGES: [&str; 6] =
    ["README.md", MAP, "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"];

pub(super) fn check(packages: &[Package], files: &Files) -> Vec<Violation> {
    let mut violations: Vec<Violation> = PAGES
        .iter()
        .filter(|page| !files.contains_key(**page))
        .map(|page| Violation::new(*page, 0, "is missing"))
        .collect();
    let Some(Some(map)) = files.get(MAP) else {
        return violations;
    };
    for package in packages {
        let named = words(map).any(|word| word == package.name || word == package.folder);
        if !named {
            let words = format!("does not name {} ({})", package.name, package.folder);
            violations.push(Violation::new(MAP, 0, words));
        }
    }
    for (number, line) in map.lines().enumerate() {
        let paths = words(line).filter(|word| KINDS.iter().any(|kind| word.starts_with(kind)));
        for path in paths.filter(|path| !is_there(path, files)) {
            let words = format!("names {path}, which is not there");
            violations.push(Violation::new(MAP, number + 1, words));
        }
    }
    violations
}

/// Words, with what is between them and what a name cannot end with taken off.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || "-_./*{}<>".contains(c);
    text.split(move |c| !part_of_name(c)).map(|word| word.trim_matches('.').trim_end_matches('/'))
}

/// Whether a path is a file or a folder. Patterns and placeholders stand for several.
fn is_there(path: &str, files: &Files) -> bool {
    let below = format!("{path}/");
    path.contains(['*', '{', '<'])
        || files.contains_key(path)
        || files.range(below.clone()..).next().is_some_and(|(file, _)| file.starts_with(&below))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(map: &str) -> Files {
        let mut files: Files =
            PAGES.iter().map(|page| ((*page).to_owned(), Some(String::new()))).collect();
        files.insert(MAP.into(), Some(map.into()));
        files.insert("crates/antiphon-core/src/clock.rs".into(), Some(String::new()));
        files
    }

    fn core() -> Package {
        Package {
            name: "antiphon-core".into(),
            folder: "crates/antiphon-core".into(),
            dependencies: Vec::new(),
        }
    }

    fn broken(map: &str) -> Vec<String> {
        check(&[core()], &files(map)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_package_is_on_the_map() {
        assert_eq!(broken("`crates/antiphon-core`: words"), [""; 0]);
        assert_eq!(broken("the crate antiphon-core."), [""; 0]);
        let expected = "ARCHITECTURE.md: does not name antiphon-core (crates/antiphon-core)";
        assert_eq!(broken("antiphon-core-extras"), [expected]);
    }

    #[test]
    fn everything_on_the_map_is_there() {
        let map = "antiphon-core: see crates/antiphon-core/src/clock.rs, `crates/*`.\n\
                   and crates/antiphon-gone/src.";
        let expected = "ARCHITECTURE.md:2: names crates/antiphon-gone/src, which is not there";
        assert_eq!(broken(map), [expected]);
    }

    #[test]
    fn a_missing_page_is_told() {
        let mut files = files("antiphon-core");
        files.remove("CHANGELOG.md");
        assert_eq!(check(&[core()], &files)[0].to_string(), "CHANGELOG.md: is missing");
    }
}
