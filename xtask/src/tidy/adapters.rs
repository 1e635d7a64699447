//! Every adapter shows that it keeps the rules of its ports.

use super::Violation;
use super::workspace::{Files, Package};

pub(super) fn check(packages: &[Package], files: &Files) -> Vec<Violation> {
    packages
        .iter()
        .filter(|package| package.folder.starts_with("adapters/"))
        .filter(|package| {
            let tests = format!("{}/tests/", package.folder);
            !files.iter().any(|(path, text)| {
                let text = text.as_deref().unwrap_or_default();
                path.starts_with(&tests) && text.contains("_conformance!")
            })
        })
        .map(|package| {
            let words = "has no conformance test: call the suite of antiphon-testing in \
                         tests/conformance.rs";
            Violation::new(&package.folder, 0, words)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter() -> Package {
        Package {
            name: "antiphon-broker-x".into(),
            folder: "adapters/antiphon-broker-x".into(),
            dependencies: Vec::new(),
        }
    }

    #[test]
    fn an_adapter_without_the_suite_is_refused() {
        let mut files = Files::new();
        let test = "adapters/antiphon-broker-x/tests/conformance.rs";
        assert_eq!(check(&[adapter()], &files).len(), 1);
        files.insert(test.into(), Some("#[test] fn something_else() {}".into()));
        assert_eq!(check(&[adapter()], &files).len(), 1);
        let call = "antiphon_testing::broker_conformance!(X);";
        files.insert(test.into(), Some(call.into()));
        assert_eq!(check(&[adapter()], &files), []);
    }
}
