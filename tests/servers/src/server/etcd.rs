//! etcd, one node.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Description, program, version_of};
use crate::instance::Instance;
use crate::place::create;
use crate::{Service, Trouble, tls, wire};

#[derive(Debug)]
pub(super) struct Etcd;

impl Description for Etcd {
    fn packages(&self) -> &'static [&'static str] {
        &["etcd-server", "openssl"]
    }

    fn version(&self) -> Result<String, Trouble> {
        version_of(Command::new(tool()?).arg("--version"))
    }

    fn prepare(&self, at: &Instance, _certificates: &Path) -> Result<(), Trouble> {
        create(&at.home)?;
        let data = self.data(at);
        create(&data)?;
        // It insists on a folder that nobody else can read.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&data, mode).map_err(|error| Trouble::file(&data, &error))
    }

    fn command(&self, at: &Instance) -> Result<Command, Trouble> {
        let mut command = Command::new(tool()?);
        let (plain, secure) = (at.ports.plain, at.ports.tls);
        let [peers, ..] = at.ports.inner;
        let clients = format!("http://127.0.0.1:{plain},https://127.0.0.1:{secure}");
        let peers = format!("http://127.0.0.1:{peers}");
        let certificates = tls::certificates()?;
        command
            .arg("--data-dir")
            .arg(self.data(at))
            .args(["--name", "test", "--listen-client-urls", &clients])
            .args(["--advertise-client-urls", &clients, "--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("test={peers}")])
            .arg("--cert-file")
            .arg(certificates.join("server.pem"))
            .arg("--key-file")
            .arg(certificates.join("server.key"))
            // Elections of one node are short, and leases may be as short as two of them.
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(["--logger", "zap", "--log-level", "warn"]);
        Ok(command)
    }

    fn ready(&self, at: &Instance) -> Result<(), String> {
        let request = b"GET /health HTTP/1.0\r\n\r\n";
        let answer = wire::ask(at.ports.plain, request)?;
        let answer = String::from_utf8_lossy(&answer);
        if answer.contains("\"health\":\"true\"") {
            return Ok(());
        }
        Err(format!("answers {:?}", answer.lines().last().unwrap_or_default()))
    }
}

fn tool() -> Result<PathBuf, Trouble> {
    program(Service::Etcd, "etcd", &[])
}
