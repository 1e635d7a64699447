//! NATS with JetStream.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Description, program, version_of};
use crate::instance::Instance;
use crate::place::{create, write};
use crate::{PASSWORD, Service, Trouble, USER, wire};

#[derive(Debug)]
pub(super) struct Nats;

impl Description for Nats {
    fn packages(&self) -> &'static [&'static str] {
        &["nats-server", "openssl"]
    }

    fn version(&self) -> Result<String, Trouble> {
        version_of(Command::new(tool()?).arg("--version"))
    }

    fn prepare(&self, at: &Instance, certificates: &Path) -> Result<(), Trouble> {
        let data = self.data(at);
        create(&data)?;
        let (plain, admin) = (at.ports.plain, at.ports.admin);
        let (data, tls) = (data.display(), certificates.display());
        // One port for both: who brings TLS gets it, and who brings no name is `local`.
        let settings = format!(
            "listen: \"127.0.0.1:{plain}\"\nhttp: \"127.0.0.1:{admin}\"\n\
             max_payload: 8MB\nmax_connections: 4000\n\
             jetstream {{\n  store_dir: \"{data}\"\n  max_memory_store: 256MB\n  \
             max_file_store: 20GB\n}}\n\
             tls {{\n  cert_file: \"{tls}/server.pem\"\n  key_file: \"{tls}/server.key\"\n  \
             timeout: 10\n}}\nallow_non_tls: true\n\
             authorization {{\n  users: [\n    {{user: local, password: local}}\n    \
             {{user: {USER}, password: {PASSWORD}}}\n  ]\n}}\nno_auth_user: local\n"
        );
        write(&at.file("nats.conf"), &settings)
    }

    fn command(&self, at: &Instance) -> Result<Command, Trouble> {
        let mut command = Command::new(tool()?);
        command.arg("-c").arg(at.file("nats.conf"));
        Ok(command)
    }

    fn ready(&self, at: &Instance) -> Result<(), String> {
        // The server speaks first, and only after JetStream has read what it keeps.
        let answer = wire::ask(at.ports.plain, b"")?;
        let answer = String::from_utf8_lossy(&answer);
        if answer.starts_with("INFO {") && answer.contains("\"jetstream\":true") {
            return Ok(());
        }
        Err(format!("answers {:?} and not as NATS with JetStream does", answer.trim_end()))
    }
}

fn tool() -> Result<PathBuf, Trouble> {
    program(Service::Nats, "nats-server", &[])
}
