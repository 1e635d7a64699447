//! What there is to know about each server, in one shape.

mod consul;
mod etcd;
mod golang;
mod kafka;
mod knot;
mod kubernetes;
mod mariadb;
mod mosquitto;
mod nats;
mod postgres;
mod rabbitmq;
mod redis;
mod zookeeper;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::instance::Instance;
use crate::place::find;
use crate::{Service, Trouble};

/// The Debian packages that a server is in.
#[must_use]
pub fn packages(service: Service) -> &'static [&'static str] {
    describe(service).packages()
}

/// The description of a server.
pub(crate) trait Description: Sync {
    /// The Debian packages that it is in, with what starting it needs.
    fn packages(&self) -> &'static [&'static str];

    /// Its version; an error when a program that it needs is missing.
    fn version(&self) -> Result<String, Trouble>;

    /// Writes settings and creates what it wants to find. Called before each start; what is there
    /// already is kept.
    fn prepare(&self, at: &Instance, certificates: &Path) -> Result<(), Trouble>;

    /// Starts it in the foreground.
    fn command(&self, at: &Instance) -> Result<Command, Trouble>;

    /// Whether it answers as this server does.
    fn ready(&self, at: &Instance) -> Result<(), String>;

    /// Where its data is.
    fn data(&self, at: &Instance) -> PathBuf {
        at.file("data")
    }

    /// What makes it end in order, without waiting for clients.
    fn stop_signal(&self) -> Signal {
        Signal::TERM
    }

    /// Ends what outlives it. Called when it does not run.
    fn clean(&self, _at: &Instance) {}

    /// How long it may take to get ready. Machines that run tests are busy.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

pub(crate) fn describe(service: Service) -> &'static dyn Description {
    match service {
        Service::Postgres => &postgres::Postgres,
        Service::Mariadb => &mariadb::Mariadb,
        Service::Redis => &redis::Redis,
        Service::Nats => &nats::Nats,
        Service::Rabbitmq => &rabbitmq::Rabbitmq,
        Service::Mosquitto => &mosquitto::Mosquitto,
        Service::Kafka => &kafka::Kafka,
        Service::Etcd => &etcd::Etcd,
        Service::Zookeeper => &zookeeper::Zookeeper,
        Service::Consul => &consul::Consul,
        Service::Knot => &knot::Knot,
        Service::Kubernetes => &kubernetes::Kubernetes,
    }
}

/// A program that a server needs, or how to get it.
fn program(service: Service, name: &str, more: &[&str]) -> Result<PathBuf, Trouble> {
    find(name, more).ok_or_else(|| {
        let packages = packages(service).join(" ");
        let service = service.name();
        Trouble::new(format!(
            "{service} is not installed: there is no program `{name}`. Install it (Debian: apt-get \
             install {packages}; as root `cargo xtask services up {service}` does it)"
        ))
    })
}

/// The first part of what a program says about its version that looks like one: `7.0.15`.
fn version_of(command: &mut Command) -> Result<String, Trouble> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Trouble::new(format!("{program} cannot be started: {error}")))?;
    let text = [output.stdout, output.stderr].concat();
    Ok(version_in(&String::from_utf8_lossy(&text)))
}

fn version_in(text: &str) -> String {
    text.split(|c: char| !c.is_ascii_digit() && c != '.')
        .map(|word| word.trim_matches('.'))
        .find(|word| word.contains('.'))
        .unwrap_or("unknown")
        .to_owned()
}

/// Whether this process is root's.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (text, version) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "15.18"),
            ("mariadbd  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu", "10.11.19"),
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1", "7.0.15"),
            ("nats-server: v2.9.10", "2.9.10"),
            ("mosquitto version 2.0.11", "2.0.11"),
            ("", "unknown"),
        ] {
            assert_eq!(version_in(text), version);
        }
    }

    #[test]
    fn a_missing_program_is_told_with_what_to_install() {
        let error = program(Service::Nats, "no-such-program", &[]).unwrap_err().to_string();
        assert!(error.contains("apt-get install nats-server"), "{error}");
        assert!(error.contains("cargo xtask services up nats"), "{error}");
    }
}
