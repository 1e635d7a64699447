//! Apache ZooKeeper, one node, from Debian's package.

use std::path::Path;
use std::process::Command;

use super::{Description, program};
use crate::instance::Instance;
use crate::place::{create, write};
use crate::{Service, Trouble, wire};

/// Where the package has its classes; the archive names the others that it needs.
const CLASSES: &str = "/usr/share/java/zookeeper.jar";
/// Writes the log to standard error.
const LOGGING: &str = "/usr/share/java/slf4j-simple.jar";

#[derive(Debug)]
pub(super) struct Zookeeper;

impl Description for Zookeeper {
    fn packages(&self) -> &'static [&'static str] {
        &["zookeeper", "openjdk-17-jre-headless", "openssl"]
    }

    fn version(&self) -> Result<String, Trouble> {
        program(Service::Zookeeper, "java", &[])?;
        // The archive is a link to one that is named after its version.
        let archive = std::fs::canonicalize(CLASSES).map_err(|_| {
            Trouble::new(format!(
                "zookeeper is not installed: there is no {CLASSES}. Install it (Debian: apt-get \
                 install {}; as root `cargo xtask services up zookeeper` does it)",
                self.packages().join(" ")
            ))
        })?;
        Ok(super::version_in(&archive.to_string_lossy()))
    }

    fn prepare(&self, at: &Instance, _certificates: &Path) -> Result<(), Trouble> {
        let data = self.data(at);
        create(&data)?;
        let (port, data) = (at.ports.plain, data.display());
        // Sessions may be as short as two ticks. Without `forceSync` it loses nothing when it is killed.
        let settings = format!(
            "dataDir={data}\nclientPort={port}\nclientPortAddress=127.0.0.1\ntickTime=500\n\
             minSessionTimeout=1000\nmaxSessionTimeout=60000\nmaxClientCnxns=0\nforceSync=no\n\
             admin.enableServer=false\n4lw.commands.whitelist=ruok,srvr\n"
        );
        write(&at.file("zoo.cfg"), &settings)
    }

    fn command(&self, at: &Instance) -> Result<Command, Trouble> {
        let mut command = Command::new(program(Service::Zookeeper, "java", &[])?);
        command
            .current_dir(&at.home)
            .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
            .args(["-cp", &format!("{CLASSES}:{LOGGING}")])
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(at.file("zoo.cfg"));
        Ok(command)
    }

    fn ready(&self, at: &Instance) -> Result<(), String> {
        let answer = wire::ask(at.ports.plain, b"srvr")?;
        let answer = String::from_utf8_lossy(&answer);
        if answer.contains("Zookeeper version") {
            return Ok(());
        }
        Err(format!("answers {:?}", answer.trim_end()))
    }
}
