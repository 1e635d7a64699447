//! PostgreSQL. It refuses to run as root: then it runs as the user that its package creates.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::{Description, is_root, program, version_of};
use crate::instance::{Instance, prepare_with};
use crate::place::{create, is_open_to_all, remove, write};
use crate::{PASSWORD, Service, Trouble, USER, wire};

/// Where Debian has the programs, newest first.
const PROGRAMS: [&str; 4] = [
    "/usr/lib/postgresql/18/bin",
    "/usr/lib/postgresql/17/bin",
    "/usr/lib/postgresql/16/bin",
    "/usr/lib/postgresql/15/bin",
];
/// The home of the user that the package creates.
const HOME: &str = "/var/lib/postgresql";

/// Durable as PostgreSQL is by default: `fsync` and `synchronous_commit` stay on.
const SETTINGS: &str = "
unix_socket_directories = ''
max_connections = 400
shared_buffers = 128MB
max_wal_size = 2GB
ssl = on
ssl_cert_file = 'server.pem'
ssl_key_file = 'server.key'
password_encryption = 'scram-sha-256'
log_min_messages = warning
log_line_prefix = '%m [%p] %q%u@%d '
";

/// Who may come in: the user of the tests by password, everybody else on this machine as they are.
const ACCESS: &str = "host all antiphon 127.0.0.1/32 scram-sha-256\n\
                      host all all 127.0.0.1/32 trust\n";

#[derive(Debug)]
pub(super) struct Postgres;

impl Description for Postgres {
    fn packages(&self) -> &'static [&'static str] {
        &["postgresql", "openssl"]
    }

    fn version(&self) -> Result<String, Trouble> {
        tool("initdb")?;
        version_of(Command::new(tool("postgres")?).arg("--version"))
    }

    fn prepare(&self, at: &Instance, certificates: &Path) -> Result<(), Trouble> {
        let data = self.data(at);
        if !data.join("ready").exists() {
            initialize(at, &data)?;
        }
        let settings =
            format!("listen_addresses = '127.0.0.1'\nport = {}\n{SETTINGS}", at.ports.plain);
        write(&data.join("postgresql.auto.conf"), &settings)?;
        write(&data.join("pg_hba.conf"), ACCESS)?;
        for name in ["server.pem", "server.key"] {
            let file = data.join(name);
            fs::copy(certificates.join(name), &file)
                .and_then(|_| fs::set_permissions(&file, fs::Permissions::from_mode(0o600)))
                .map_err(|error| Trouble::file(&file, &error))?;
            give(&file)?;
        }
        Ok(())
    }

    fn command(&self, at: &Instance) -> Result<Command, Trouble> {
        let mut command = as_its_user(&tool("postgres")?)?;
        command.arg("-D").arg(self.data(at));
        Ok(command)
    }

    fn ready(&self, at: &Instance) -> Result<(), String> {
        // A connection of the protocol 3.0 for the user and database `postgres`. The answer of a
        // server that lets it in is `R`; one that is starting up says `E`.
        let mut body = Vec::from(196_608_u32.to_be_bytes());
        body.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        let mut words = Vec::from(u32::try_from(body.len() + 4).unwrap_or(0).to_be_bytes());
        words.extend_from_slice(&body);
        let answer = wire::ask(at.ports.plain, &words)?;
        match answer.first() {
            Some(b'R') => Ok(()),
            _ => Err(String::from_utf8_lossy(&answer).replace('\0', " ").trim().to_owned()),
        }
    }

    fn data(&self, at: &Instance) -> PathBuf {
        let inside = at.file("data");
        if !is_root() || is_open_to_all(&at.home) {
            return inside;
        }
        // Root's home is closed to other users.
        let name = at.home.to_string_lossy().trim_matches('/').replace('/', "-");
        Path::new(HOME).join("antiphon").join(name)
    }

    /// TERM would wait until the last client has gone.
    fn stop_signal(&self) -> Signal {
        Signal::INT
    }
}

fn tool(name: &str) -> Result<PathBuf, Trouble> {
    program(Service::Postgres, name, &PROGRAMS)
}

/// Creates the data folder, with the user of the tests. It gets its name only when it is complete.
fn initialize(at: &Instance, data: &Path) -> Result<(), Trouble> {
    let new = data.with_extension("new");
    remove(&new)?;
    remove(data)?;
    create(&new)?;
    give(&new)?;
    if let Some(above) = new.parent().filter(|above| above.starts_with(HOME)) {
        give(above)?;
    }
    let mut initdb = as_its_user(&tool("initdb")?)?;
    initdb.args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]);
    prepare_with(initdb.arg("-D").arg(&new))?;
    // Statements for a server that is not running, one a line.
    let statements = at.file("users.sql");
    let users = format!(
        "create role {USER} login createdb createrole password '{PASSWORD}';\n\
         grant pg_monitor, pg_signal_backend to {USER};\n\
         grant all on database postgres to {USER};\ngrant all on schema public to {USER};\n"
    );
    write(&statements, &users)?;
    let input = fs::File::open(&statements).map_err(|error| Trouble::file(&statements, &error))?;
    let mut single = as_its_user(&tool("postgres")?)?;
    single.arg("--single").arg("-D").arg(&new).args(["-c", "password_encryption=scram-sha-256"]);
    prepare_with(single.arg("postgres").stdin(input))?;
    let ready = new.join("ready");
    write(&ready, "")?;
    give(&ready)?;
    fs::rename(&new, data).map_err(|error| Trouble::file(data, &error))
}

/// A command that is run by a user that PostgreSQL accepts.
fn as_its_user(program: &Path) -> Result<Command, Trouble> {
    let mut command = Command::new(program);
    command.current_dir("/").stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
    if let Some((user, group)) = its_user()? {
        command.uid(user).gid(group);
    }
    Ok(command)
}

/// Gives a file to the user that runs the server.
fn give(path: &Path) -> Result<(), Trouble> {
    match its_user()? {
        None => Ok(()),
        Some((user, group)) => {
            chown(path, Some(user), Some(group)).map_err(|error| Trouble::file(path, &error))
        }
    }
}

/// The user that its package creates, when we are root.
fn its_user() -> Result<Option<(u32, u32)>, Trouble> {
    if !is_root() {
        return Ok(None);
    }
    let home = fs::metadata(HOME).map_err(|error| Trouble::file(Path::new(HOME), &error))?;
    Ok(Some((home.uid(), home.gid())))
}
