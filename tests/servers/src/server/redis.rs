//! Redis, with its append-only file.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Description, program, version_of};
use crate::instance::Instance;
use crate::place::{create, write};
use crate::{PASSWORD, Service, Trouble, USER, wire};

#[derive(Debug)]
pub(super) struct Redis;

impl Description for Redis {
    fn packages(&self) -> &'static [&'static str] {
        &["redis-server", "openssl"]
    }

    fn version(&self) -> Result<String, Trouble> {
        version_of(Command::new(tool()?).arg("--version"))
    }

    fn prepare(&self, at: &Instance, certificates: &Path) -> Result<(), Trouble> {
        let data = self.data(at);
        create(&data)?;
        let (plain, secure) = (at.ports.plain, at.ports.tls);
        let (data, tls) = (data.display(), certificates.display());
        // The log is written before a command is answered, so a killed server loses nothing; a power
        // failure loses up to a second. Whoever needs more sets `appendfsync always`.
        let settings = format!(
            "bind 127.0.0.1\nport {plain}\ntls-port {secure}\ntls-auth-clients no\n\
             tls-ca-cert-file {tls}/ca.pem\ntls-cert-file {tls}/server.pem\n\
             tls-key-file {tls}/server.key\n\
             user default on nopass ~* &* +@all\nuser {USER} on >{PASSWORD} ~* &* +@all\n\
             dir {data}\nappendonly yes\nappendfsync everysec\nsave \"\"\n\
             maxclients 4000\nmaxmemory-policy noeviction\nenable-debug-command local\n"
        );
        write(&at.file("redis.conf"), &settings)
    }

    fn command(&self, at: &Instance) -> Result<Command, Trouble> {
        let mut command = Command::new(tool()?);
        command.arg(at.file("redis.conf"));
        Ok(command)
    }

    fn ready(&self, at: &Instance) -> Result<(), String> {
        // While it reads its log it answers `-LOADING`.
        let answer = wire::ask(at.ports.plain, b"PING\r\n")?;
        if answer.starts_with(b"+PONG") {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&answer).trim().to_owned())
    }
}

fn tool() -> Result<PathBuf, Trouble> {
    program(Service::Redis, "redis-server", &[])
}
