//! Servers that are built from their published Go modules, once.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::program;
use crate::instance::prepare_with;
use crate::place::{create, folder, remove, write};
use crate::{Service, Trouble};

/// The file of a program of ours.
const MAIN: &str = "main.go";

/// A program, as a part of a module of ours: the replacements in its own manifest, which name folders
/// of its repository, do not count then.
pub(super) struct Program {
    pub(super) service: Service,
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    /// What is built.
    pub(super) package: &'static str,
    /// The manifest of the module of ours.
    pub(super) module: &'static str,
    /// Its only file, where it is more than a manifest.
    pub(super) main: Option<&'static str>,
}

impl Program {
    /// The version that is, or will be, built.
    pub(super) fn version(&self) -> Result<String, Trouble> {
        if !self.is_built() {
            self.go()?;
        }
        Ok(self.version.to_owned())
    }

    pub(super) fn binary(&self) -> PathBuf {
        self.home().join(self.name)
    }

    /// Has Go build it, unless it is there: some minutes. Several processes may want it at once.
    pub(super) fn build(&self) -> Result<(), Trouble> {
        let above = folder();
        create(&above)?;
        let lock = above.join(format!("{}.lock", self.name));
        let file = fs::File::create(&lock).map_err(|error| Trouble::file(&lock, &error))?;
        file.lock().map_err(|error| Trouble::file(&lock, &error))?;
        if self.is_built() {
            return Ok(());
        }
        let new = above.join(format!("{}.new", self.name));
        remove(&new)?;
        create(&new)?;
        write(&new.join("go.mod"), self.module)?;
        if let Some(main) = self.main {
            write(&new.join(MAIN), main)?;
        }
        let mut go = Command::new(self.go()?);
        go.args(["build", "-mod=mod", "-ldflags=-s -w", "-o", self.name, self.package]);
        prepare_with(go.current_dir(&new).stdin(Stdio::null()))?;
        remove(&self.home())?;
        fs::rename(&new, self.home()).map_err(|error| Trouble::file(&self.home(), &error))
    }

    /// Whether it is there, and of what would be built now.
    fn is_built(&self) -> bool {
        let is_same =
            |main| fs::read_to_string(self.home().join(MAIN)).is_ok_and(|old| old == main);
        self.binary().exists() && self.main.is_none_or(is_same)
    }

    fn home(&self) -> PathBuf {
        folder().join(format!("{}-{}", self.name, self.version))
    }

    fn go(&self) -> Result<PathBuf, Trouble> {
        program(self.service, "go", &["/usr/local/go/bin"])
    }
}
