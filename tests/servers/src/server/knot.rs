//! Knot DNS, a name server with one zone that tests change while it runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Description, program, version_of};
use crate::instance::Instance;
use crate::place::{create, write};
use crate::zone::{self, ORIGIN};
use crate::{Service, Trouble};

#[derive(Debug)]
pub(super) struct Knot;

impl Description for Knot {
    fn packages(&self) -> &'static [&'static str] {
        &["knot", "openssl"]
    }

    fn version(&self) -> Result<String, Trouble> {
        version_of(Command::new(tool()?).arg("--version"))
    }

    fn prepare(&self, at: &Instance, _certificates: &Path) -> Result<(), Trouble> {
        let data = self.data(at);
        create(&data)?;
        let zone = data.join(format!("{ORIGIN}.zone"));
        // It writes every change into this file.
        if !zone.exists() {
            write(&zone, &zone::content())?;
        }
        let (port, home, data) = (at.ports.plain, at.home.display(), data.display());
        let settings = format!(
            "server:\n  rundir: \"{home}\"\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  \
             tcp-workers: 1\n  background-workers: 1\n\
             control:\n  listen: \"{home}/knot.sock\"\n\
             log:\n  - target: stderr\n    any: warning\n\
             database:\n  storage: \"{data}\"\n  journal-db-max-size: 64M\n\
             acl:\n  - id: tests\n    address: 127.0.0.1\n    action: update\n\
             zone:\n  - domain: {ORIGIN}\n    storage: \"{data}\"\n    file: {ORIGIN}.zone\n    \
             acl: tests\n"
        );
        write(&at.file("knot.conf"), &settings)
    }

    fn command(&self, at: &Instance) -> Result<Command, Trouble> {
        let mut command = Command::new(tool()?);
        command.arg("--config").arg(at.file("knot.conf"));
        Ok(command)
    }

    fn ready(&self, at: &Instance) -> Result<(), String> {
        zone::ask(at.ports.plain)
    }
}

fn tool() -> Result<PathBuf, Trouble> {
    program(Service::Knot, "knotd", &[])
}
