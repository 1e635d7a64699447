//! Mosquitto, the MQTT broker.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Description, is_root, program, version_of};
use crate::instance::{Instance, prepare_with};
use crate::place::{create, write};
use crate::{PASSWORD, Service, Trouble, USER, wire};

#[derive(Debug)]
pub(super) struct Mosquitto;

impl Description for Mosquitto {
    fn packages(&self) -> &'static [&'static str] {
        &["mosquitto", "openssl"]
    }

    fn version(&self) -> Result<String, Trouble> {
        tool("mosquitto_passwd")?;
        // Its help, which begins with the version, counts as a failure.
        version_of(Command::new(tool("mosquitto")?).arg("-h"))
    }

    fn prepare(&self, at: &Instance, certificates: &Path) -> Result<(), Trouble> {
        let data = self.data(at);
        create(&data)?;
        let passwords = at.file("passwords");
        if !passwords.exists() {
            let mut passwd = Command::new(tool("mosquitto_passwd")?);
            prepare_with(passwd.args(["-b", "-c"]).arg(&passwords).args([USER, PASSWORD]))?;
        }
        let (plain, secure) = (at.ports.plain, at.ports.tls);
        let (data, tls, passwords) = (data.display(), certificates.display(), passwords.display());
        // As root it would become another user, who cannot read our files.
        let user = if is_root() { "user root\n" } else { "" };
        // It writes what it keeps every second and when it ends in order; a killed one loses the last
        // second, which is what it can do at best.
        let settings = format!(
            "{user}per_listener_settings true\npersistence true\npersistence_location {data}/\n\
             autosave_interval 1\nmax_queued_messages 0\nmax_inflight_messages 65535\n\
             set_tcp_nodelay true\nlog_dest stderr\nlog_type error\nlog_type warning\n\
             log_type notice\nconnection_messages false\n\
             listener {plain} 127.0.0.1\nallow_anonymous true\n\
             listener {secure} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n\
             certfile {tls}/server.pem\nkeyfile {tls}/server.key\n"
        );
        write(&at.file("mosquitto.conf"), &settings)
    }

    fn command(&self, at: &Instance) -> Result<Command, Trouble> {
        let mut command = Command::new(tool("mosquitto")?);
        command.arg("-c").arg(at.file("mosquitto.conf"));
        Ok(command)
    }

    fn ready(&self, at: &Instance) -> Result<(), String> {
        // CONNECT of MQTT 3.1.1 with a clean session and the client id `ready`.
        let words = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05ready";
        let answer = wire::ask(at.ports.plain, words)?;
        if answer == [0x20, 2, 0, 0] { Ok(()) } else { Err(format!("answers {answer:?}")) }
    }
}

fn tool(name: &str) -> Result<PathBuf, Trouble> {
    program(Service::Mosquitto, name, &[])
}
