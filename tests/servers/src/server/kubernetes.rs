//! An API server of Kubernetes with its etcd inside, built from its published Go modules: nothing runs
//! pods, so what it says of Services is what tests write.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::Description;
use super::golang::Program;
use crate::instance::Instance;
use crate::place::{create, write};
use crate::service::{PASSWORD, USER};
use crate::{Service, Trouble, tls, wire};

/// Newer ones need a newer Go than Debian has.
const PROGRAM: Program = Program {
    service: Service::Kubernetes,
    name: "kubernetes",
    version: "1.26.15",
    package: ".",
    module: include_str!("kubernetes/go.mod"),
    main: Some(include_str!("kubernetes/main.go")),
};

#[derive(Debug)]
pub(super) struct Kubernetes;

impl Description for Kubernetes {
    fn packages(&self) -> &'static [&'static str] {
        &["golang-go", "openssl"]
    }

    fn version(&self) -> Result<String, Trouble> {
        PROGRAM.version()
    }

    fn prepare(&self, at: &Instance, _certificates: &Path) -> Result<(), Trouble> {
        PROGRAM.build()?;
        let data = self.data(at);
        create(&data)?;
        // One who may do everything, and one who may do nothing unless a role says so.
        let tokens = format!("{PASSWORD},{USER},1,\"system:masters\"\nguest,guest,2\n");
        write(&data.join("tokens.csv"), &tokens)
    }

    fn command(&self, at: &Instance) -> Result<Command, Trouble> {
        let mut command = Command::new(PROGRAM.binary());
        let [client, peer, ..] = at.ports.inner;
        let ports = [at.ports.plain, at.ports.tls, client, peer].map(|port| port.to_string());
        command.arg(self.data(at)).arg(tls::certificates()?).arg("127.0.0.1").args(ports);
        Ok(command)
    }

    fn ready(&self, at: &Instance) -> Result<(), String> {
        wire::get(at.ports.plain, "/readyz", "")
    }

    fn stop_signal(&self) -> Signal {
        // In order, it waits for a minute that those who watch go.
        Signal::KILL
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(120)
    }
}
