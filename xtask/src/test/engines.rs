//! Test programs that talk to real servers: which they are, and the servers.
//!
//! A package says in its manifest which servers its test programs talk to:
//!
//! ```toml
//! [package.metadata.services]
//! needs = ["nats"]
//! programs = ["conformance"]   # only these; without it, all below `tests`
//! ```
//!
//! A package that needs servers and names no programs also needs libraries that are not Rust, perhaps,
//! and is left out by `--embedded` as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use test_servers::{Instance, Service};

use super::programs::{Done, Variables};
use crate::process::{capture, cargo};
use crate::services::{self, Up};
use crate::summary::seconds;

/// What packages need.
#[derive(Debug, Default)]
pub(crate) struct Needs(BTreeMap<PathBuf, Package>);

#[derive(Debug)]
struct Package {
    name: String,
    needs: BTreeSet<Service>,
    /// Without it, all programs.
    programs: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
}

#[derive(Deserialize)]
struct MetadataPackage {
    name: String,
    manifest_path: PathBuf,
    metadata: Option<Sections>,
}

#[derive(Deserialize)]
struct Sections {
    services: Option<Section>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    needs: Vec<String>,
    programs: Option<Vec<String>>,
}

impl Needs {
    /// Reads what the manifests of the workspace say.
    pub(crate) fn read(root: &Path) -> Result<Self, String> {
        let arguments = ["metadata", "--no-deps", "--format-version", "1"];
        Self::parse(&capture(&mut cargo(root, &arguments))?)
    }

    fn parse(metadata: &str) -> Result<Self, String> {
        let metadata: Metadata =
            serde_json::from_str(metadata).map_err(|error| format!("cargo metadata: {error}"))?;
        let mut all = BTreeMap::new();
        for package in metadata.packages {
            let Some(section) = package.metadata.and_then(|sections| sections.services) else {
                continue;
            };
            let needs = section.needs.iter().map(|name| {
                Service::named(name).ok_or_else(|| {
                    format!("{}: there is no server {name:?}", package.manifest_path.display())
                })
            });
            let needs = needs.collect::<Result<_, _>>()?;
            let folder = package.manifest_path.parent().unwrap_or(&package.manifest_path);
            let entry = Package { name: package.name, needs, programs: section.programs };
            all.insert(folder.to_owned(), entry);
        }
        Ok(Self(all))
    }

    /// The servers of a test program; `None` when it needs none.
    pub(crate) fn of(&self, folder: &Path, target: &str) -> Option<BTreeSet<Service>> {
        let package = self.0.get(folder)?;
        let meant = package.programs.as_ref().is_none_or(|all| all.iter().any(|p| p == target));
        meant.then(|| package.needs.clone())
    }

    /// The packages that `--embedded` does not build.
    pub(crate) fn whole_packages(&self) -> Vec<&str> {
        let whole = self.0.values().filter(|package| package.programs.is_none());
        whole.map(|package| package.name.as_str()).collect()
    }
}

/// The servers of one test run. What was started for it is stopped when it ends.
#[derive(Debug, Default)]
pub(crate) struct Engines {
    up: Vec<Up>,
}

impl Engines {
    /// Brings servers up.
    pub(crate) fn up(&mut self, root: &Path, needed: &BTreeSet<Service>) -> Result<(), String> {
        let needed: Vec<Service> = needed.iter().copied().collect();
        // Those that were started before another failed are stopped at the end, too.
        let before: Vec<Service> =
            needed.iter().copied().filter(|one| Instance::shared(*one).runs()).collect();
        let result = services::up(root, &needed);
        self.up = match &result {
            Ok(up) => up.clone(),
            Err(_) => needed
                .into_iter()
                .filter(|one| !before.contains(one) && Instance::shared(*one).runs())
                .map(|service| Up { service, version: String::new(), started: true })
                .collect(),
        };
        result.map(|_| ())
    }

    /// Where they are, for the test programs.
    pub(crate) fn variables(&self) -> Variables {
        let mut variables = Variables::new();
        for service in self.up.iter().map(|up| up.service) {
            let (name, ports) = (service.variable(), service.ports());
            variables.push((format!("{name}_TLS"), service.tls_url_at(ports).into()));
            if let Some(url) = service.admin_url_at(ports) {
                variables.push((format!("{name}_ADMIN"), url.into()));
            }
            variables.push((name, service.url_at(ports).into()));
        }
        let authority = test_servers::folder().join("tls/ca.pem");
        variables.push(("ANTIPHON_TEST_CA".to_owned(), OsString::from(authority)));
        variables
    }

    /// Stops what was started for this run.
    fn down(&mut self) {
        for up in self.up.iter().filter(|up| up.started) {
            match Instance::shared(up.service).stop() {
                Ok(_) => println!("    {:<10} stopped", up.service.name()),
                Err(error) => println!("    {error}"),
            }
        }
        self.up.clear();
    }

    /// Which servers were tested, with their versions, by how many tests, and how long.
    pub(crate) fn table(&self, done: &[Done]) -> String {
        let mut text = String::from("\n  engines tested");
        for up in &self.up {
            let of: Vec<&Done> =
                done.iter().filter(|one| one.needs.contains(&up.service)).collect();
            let took: Duration = of.iter().map(|one| one.took).sum();
            let (programs, tests) = (of.len(), of.iter().map(|one| one.passed).sum::<u64>());
            let failed = of.iter().filter(|one| !one.ok).count();
            let ended = if failed == 0 { String::new() } else { format!(", {failed} FAILED") };
            text += &format!(
                "\n    {:<10} {:<9} {tests:>4} tests in {programs:>2} programs, {:>8}{ended}",
                up.service.name(),
                up.version,
                seconds(took)
            );
        }
        text
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        self.down();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(services: &str) -> Result<Needs, String> {
        Needs::parse(&format!(
            "{{\"packages\":[{{\"name\":\"a\",\"manifest_path\":\"/r/a/Cargo.toml\",\
             \"metadata\":null}},{{\"name\":\"b\",\"manifest_path\":\"/r/b/Cargo.toml\",\
             \"metadata\":{{\"services\":{services}}}}}]}}"
        ))
    }

    #[test]
    fn packages_say_what_their_tests_need() {
        let all = parse("{\"needs\":[\"nats\",\"postgres\"]}").unwrap();
        let both = BTreeSet::from([Service::Postgres, Service::Nats]);
        assert_eq!(all.of(Path::new("/r/b"), "x"), Some(both));
        assert_eq!(all.of(Path::new("/r/a"), "x"), None);
        assert_eq!(all.whole_packages(), ["b"]);
    }

    #[test]
    fn some_programs_may_need_servers_and_others_not() {
        let some = parse("{\"needs\":[\"redis\"],\"programs\":[\"private\"]}").unwrap();
        assert!(some.of(Path::new("/r/b"), "private").is_some());
        assert!(some.of(Path::new("/r/b"), "proxy").is_none());
        assert!(some.whole_packages().is_empty());
    }

    #[test]
    fn mistakes_in_a_manifest_are_told_with_its_path() {
        let error = parse("{\"needs\":[\"oracle\"]}").unwrap_err();
        assert_eq!(error, "/r/b/Cargo.toml: there is no server \"oracle\"");
        assert!(parse("{\"needs\":[],\"needz\":[]}").is_err());
    }

    #[test]
    fn the_end_says_which_engines_were_tested() {
        let up = Up { service: Service::Nats, version: "2.9.10".to_owned(), started: false };
        let engines = Engines { up: vec![up] };
        let done = Done {
            needs: BTreeSet::from([Service::Nats]),
            took: Duration::from_secs(3),
            passed: 40,
            ok: false,
        };
        let table = engines.table(&[done]);
        assert!(table.contains("nats       2.9.10"), "{table}");
        assert!(table.contains("40 tests in  1 programs,    3.0 s, 1 FAILED"), "{table}");
        let names: Vec<String> = engines.variables().into_iter().map(|(name, _)| name).collect();
        assert!(names.contains(&"ANTIPHON_TEST_NATS".to_owned()), "{names:?}");
        assert!(names.contains(&"ANTIPHON_TEST_NATS_TLS".to_owned()), "{names:?}");
    }
}
