//! RabbitMQ, with its management and its metrics.
//!
//! Its scripts change the user, so they are left out: the program behind them runs as whoever runs
//! this. Nodes find each other through a daemon of Erlang's, `epmd`, which outlives them; each of our
//! nodes has one of its own, on a port of its own, and it is ended with the node.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Description, program};
use crate::instance::Instance;
use crate::place::{create, write};
use crate::processes::wait;
use crate::{PASSWORD, Service, Trouble, USER, wire};

/// Where Debian has the programs.
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
/// Where Debian has the server.
const LIBRARY: &str = "/usr/lib/rabbitmq/lib";

#[derive(Debug)]
pub(super) struct Rabbitmq;

impl Description for Rabbitmq {
    fn packages(&self) -> &'static [&'static str] {
        &["rabbitmq-server", "openssl"]
    }

    fn version(&self) -> Result<String, Trouble> {
        tool()?;
        // Asking the program takes a second; the folder has the version in its name.
        let folders = std::fs::read_dir(LIBRARY).into_iter().flatten().flatten();
        let version = folders
            .filter_map(|entry| {
                entry.file_name().to_str()?.strip_prefix("rabbitmq_server-").map(str::to_owned)
            })
            .next();
        Ok(version.unwrap_or_else(|| "unknown".to_owned()))
    }

    fn prepare(&self, at: &Instance, certificates: &Path) -> Result<(), Trouble> {
        create(&self.data(at))?;
        write(&at.file("plugins"), "[rabbitmq_management,rabbitmq_prometheus].\n")?;
        write(&at.file("definitions.json"), &definitions())?;
        write(&at.file("rabbitmq.conf"), &settings(at, certificates))
    }

    fn command(&self, at: &Instance) -> Result<Command, Trouble> {
        let [_, distribution, _] = at.ports.inner;
        let mut command = Command::new(tool()?);
        environment(&mut command, at);
        command
            .env("RABBITMQ_MNESIA_BASE", self.data(at))
            .env("RABBITMQ_LOG_BASE", &at.home)
            .env("RABBITMQ_CONFIG_FILE", at.file("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at.file("plugins"))
            .env("RABBITMQ_PID_FILE", at.file("rabbitmq.pid"))
            .env("RABBITMQ_DIST_PORT", distribution.to_string())
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none \
                 -kernel inet_dist_use_interface {127,0,0,1}",
            );
        Ok(command)
    }

    fn ready(&self, at: &Instance) -> Result<(), String> {
        let path = format!("/api/health/checks/port-listener/{}", at.ports.plain);
        // guest:guest
        wire::get(at.ports.admin, &path, "Authorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n")
    }

    fn clean(&self, at: &Instance) {
        let [_, _, port] = at.ports.inner;
        // It refuses while it believes that a node is alive, which it notices in a moment.
        wait(Duration::from_secs(5), || {
            if !wire::is_taken(port) {
                return true;
            }
            let mut command = Command::new("epmd");
            environment(&mut command, at);
            command.arg("-kill").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // Without the program there was no server either.
            command.process_group(0).status().is_err()
        });
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(150)
    }
}

fn tool() -> Result<PathBuf, Trouble> {
    let scripts = Path::new(PROGRAMS).join("rabbitmq-server");
    if scripts.exists() {
        return Ok(scripts);
    }
    program(Service::Rabbitmq, "rabbitmq-server", &[])
}

/// What the node and its tools must agree on.
fn environment(command: &mut Command, at: &Instance) {
    let [_, _, epmd] = at.ports.inner;
    command
        .current_dir(&at.home)
        .env("HOME", &at.home)
        .env("RABBITMQ_NODENAME", format!("antiphon-{}@localhost", at.ports.plain))
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("ERL_EPMD_PORT", epmd.to_string())
        .env("LC_ALL", "C.UTF-8");
}

fn settings(at: &Instance, certificates: &Path) -> String {
    let (plain, secure, admin) = (at.ports.plain, at.ports.tls, at.ports.admin);
    let [metrics, ..] = at.ports.inner;
    let (home, tls) = (at.home.display(), certificates.display());
    // Its write-ahead log keeps up to this much in memory; the default of 512 MB is for machines that
    // do nothing else.
    format!(
        "listeners.tcp.1 = 127.0.0.1:{plain}\nlisteners.ssl.1 = 127.0.0.1:{secure}\n\
         ssl_options.cacertfile = {tls}/ca.pem\nssl_options.certfile = {tls}/server.pem\n\
         ssl_options.keyfile = {tls}/server.key\nssl_options.verify = verify_none\n\
         ssl_options.fail_if_no_peer_cert = false\n\
         management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {admin}\n\
         prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {metrics}\n\
         load_definitions = {home}/definitions.json\n\
         raft.wal_max_size_bytes = 67108864\n\
         vm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 100MB\n\
         log.console = true\nlog.console.level = warning\nlog.file = false\n"
    )
}

/// Users and their rights. With definitions there is no user by default.
fn definitions() -> String {
    let user = |name: &str, password: &str| {
        format!("{{\"name\":\"{name}\",\"password\":\"{password}\",\"tags\":\"administrator\"}}")
    };
    let rights = |name: &str| {
        format!(
            "{{\"user\":\"{name}\",\"vhost\":\"/\",\"configure\":\".*\",\"write\":\".*\",\
             \"read\":\".*\"}}"
        )
    };
    format!(
        "{{\"vhosts\":[{{\"name\":\"/\"}}],\"users\":[{},{}],\"permissions\":[{},{}]}}\n",
        user("guest", "guest"),
        user(USER, PASSWORD),
        rights("guest"),
        rights(USER)
    )
}
