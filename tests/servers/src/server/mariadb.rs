//! MariaDB.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Description, is_root, program, version_of};
use crate::instance::{Instance, prepare_with};
use crate::place::{remove, write};
use crate::{PASSWORD, Service, Trouble, USER, wire};

#[derive(Debug)]
pub(super) struct Mariadb;

impl Description for Mariadb {
    fn packages(&self) -> &'static [&'static str] {
        &["mariadb-server", "openssl"]
    }

    fn version(&self) -> Result<String, Trouble> {
        tool("mariadb-install-db")?;
        version_of(Command::new(tool("mariadbd")?).arg("--version"))
    }

    fn prepare(&self, at: &Instance, certificates: &Path) -> Result<(), Trouble> {
        let data = self.data(at);
        if !data.join("mysql").exists() {
            let new = data.with_extension("new");
            remove(&new)?;
            remove(&data)?;
            let mut install = Command::new(tool("mariadb-install-db")?);
            install.args(["--no-defaults", "--auth-root-authentication-method=normal"]);
            install.arg("--skip-test-db").arg(user()).arg(with_path("--datadir", &new));
            prepare_with(&mut install)?;
            fs::rename(&new, &data).map_err(|error| Trouble::file(&data, &error))?;
        }
        let users = format!(
            "CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{PASSWORD}' REQUIRE SSL;\n\
             GRANT ALL PRIVILEGES ON *.* TO '{USER}'@'%';\n"
        );
        write(&at.file("users.sql"), &users)?;
        write(&at.file("settings.cnf"), &settings(at, &data, certificates))
    }

    fn command(&self, at: &Instance) -> Result<Command, Trouble> {
        let mut command = Command::new(tool("mariadbd")?);
        command.arg(with_path("--defaults-file", &at.file("settings.cnf")));
        Ok(command)
    }

    fn ready(&self, at: &Instance) -> Result<(), String> {
        // The server speaks first: length, number, and the version 10 of its protocol.
        let answer = wire::ask(at.ports.plain, b"")?;
        match answer.get(4) {
            Some(10) => Ok(()),
            _ => Err(format!("answers {:?}", String::from_utf8_lossy(&answer))),
        }
    }
}

/// Durable as MariaDB is by default: each commit is flushed.
fn settings(at: &Instance, data: &Path, certificates: &Path) -> String {
    let user = user();
    let user = user.trim_start_matches("--");
    let port = at.ports.plain;
    let (data, home, tls) = (data.display(), at.home.display(), certificates.display());
    // Connections that are only asked whether the server is there must not block this machine.
    format!(
        "[mariadbd]\n{user}\ndatadir={data}\nport={port}\nbind-address=127.0.0.1\n\
         socket={home}/socket\npid-file={home}/mariadbd.pid\ninit-file={home}/users.sql\n\
         skip-name-resolve\nmax-connections=400\nmax-connect-errors=4000000000\n\
         character-set-server=utf8mb4\ncollation-server=utf8mb4_unicode_ci\n\
         innodb-flush-log-at-trx-commit=1\ninnodb-buffer-pool-size=256M\n\
         innodb-log-file-size=128M\nmax-allowed-packet=64M\nlog-warnings=1\n\
         ssl-ca={tls}/ca.pem\nssl-cert={tls}/server.pem\nssl-key={tls}/server.key\n"
    )
}

fn tool(name: &str) -> Result<PathBuf, Trouble> {
    program(Service::Mariadb, name, &[])
}

/// As root it says which user it shall be.
fn user() -> String {
    let name = crate::place::variable("USER").unwrap_or_else(|| "mysql".to_owned());
    let name = if is_root() { "root" } else { &name };
    format!("--user={name}")
}

fn with_path(option: &str, path: &Path) -> String {
    format!("{option}={}", path.display())
}
