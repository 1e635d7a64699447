//! Apache Kafka, one node that is broker and controller, from Maven Central's artifacts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Description, program};
use crate::instance::{Instance, prepare_with};
use crate::place::{create, folder, remove, write};
use crate::{PASSWORD, Service, Trouble, USER, wire};

/// Needs Java 17.
const VERSION: &str = "4.1.0";

/// Any 16 bytes; data folders of other clusters are refused.
const CLUSTER: &str = "YW50aXBob24tdGVzdHMtMQ";

#[derive(Debug)]
pub(super) struct Kafka;

impl Description for Kafka {
    fn packages(&self) -> &'static [&'static str] {
        &["openjdk-17-jre-headless", "maven", "openssl"]
    }

    fn version(&self) -> Result<String, Trouble> {
        tool("java")?;
        if !library().exists() {
            tool("mvn")?;
        }
        Ok(VERSION.to_owned())
    }

    fn prepare(&self, at: &Instance, certificates: &Path) -> Result<(), Trouble> {
        fetch()?;
        create(&at.home)?;
        let keys = at.file("server.pem");
        // A store of the kind PEM is one file with the key and the certificate.
        let mut both = String::new();
        for name in ["server.key", "server.pem"] {
            let file = certificates.join(name);
            both += &fs::read_to_string(&file).map_err(|error| Trouble::file(&file, &error))?;
        }
        write(&keys, &both)?;
        let data = self.data(at);
        let file = at.file("server.properties");
        write(&file, &settings(at, &data, &keys))?;
        if !data.join("meta.properties").exists() {
            remove(&data)?;
            let mut format = java(at, 128)?;
            format.args(["kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c"]).arg(&file);
            prepare_with(format.stdin(Stdio::null()))?;
        }
        Ok(())
    }

    fn command(&self, at: &Instance) -> Result<Command, Trouble> {
        let mut command = java(at, 512)?;
        command.arg("kafka.Kafka").arg(at.file("server.properties"));
        Ok(command)
    }

    fn ready(&self, at: &Instance) -> Result<(), String> {
        // Length, ApiVersions (18) in its version 0, the number 7, no name. The answer has the number
        // and no error.
        let words = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 255, 255];
        let answer = wire::ask(at.ports.plain, &words)?;
        match answer.get(4..10) {
            Some([0, 0, 0, 7, 0, 0]) => Ok(()),
            _ => Err(format!("answers {} bytes that are not Kafka's", answer.len())),
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(150)
    }
}

fn tool(name: &str) -> Result<PathBuf, Trouble> {
    program(Service::Kafka, name, &[])
}

fn library() -> PathBuf {
    folder().join(format!("kafka-{VERSION}"))
}

/// Has Maven put Kafka and all that it needs into a folder, once.
fn fetch() -> Result<(), Trouble> {
    let library = library();
    let above = folder();
    create(&above)?;
    let lock = above.join("kafka.lock");
    let file = fs::File::create(&lock).map_err(|error| Trouble::file(&lock, &error))?;
    file.lock().map_err(|error| Trouble::file(&lock, &error))?;
    if library.exists() {
        return Ok(());
    }
    let new = above.join("kafka.new");
    remove(&new)?;
    create(&new)?;
    let dependency = |group: &str, name: &str, version: &str| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId>\
             <version>{version}</version></dependency>"
        )
    };
    let project = format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>antiphon</groupId><artifactId>kafka</artifactId><version>1</version>\
         <dependencies>{}{}</dependencies></project>",
        dependency("org.apache.kafka", "kafka_2.13", VERSION),
        // Writes the log to standard error.
        dependency("org.slf4j", "slf4j-simple", "1.7.36"),
    );
    write(&new.join("pom.xml"), &project)?;
    let mut maven = Command::new(tool("mvn")?);
    maven.args(["-B", "-q", "dependency:copy-dependencies", "-DincludeScope=runtime"]);
    maven.arg("-DoutputDirectory=jars").current_dir(&new).stdin(Stdio::null());
    prepare_with(&mut maven)?;
    fs::rename(&new, &library).map_err(|error| Trouble::file(&library, &error))
}

fn java(at: &Instance, megabytes: u32) -> Result<Command, Trouble> {
    let mut command = Command::new(tool("java")?);
    command
        .current_dir(&at.home)
        .arg(format!("-Xmx{megabytes}m"))
        .args(["-XX:+UseSerialGC", "-Djava.awt.headless=true"])
        .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
        .args(["-cp", &format!("{}/jars/*", library().display())]);
    Ok(command)
}

/// Kafka acknowledges what the system's cache has; it does not flush by itself, as in production,
/// where other replicas have it too.
fn settings(at: &Instance, data: &Path, keys: &Path) -> String {
    let (plain, secure) = (at.ports.plain, at.ports.tls);
    let [controller, ..] = at.ports.inner;
    let listeners =
        |plain: u16| format!("PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{secure}");
    let (listeners, advertised) = (listeners(plain), listeners(at.advertised.unwrap_or(plain)));
    let (data, keys) = (data.display(), keys.display());
    format!(
        "process.roles=broker,controller\nnode.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         controller.listener.names=CONTROLLER\ninter.broker.listener.name=PLAINTEXT\n\
         listeners={listeners},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners={advertised}\n\
         listener.security.protocol.map=\
         PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT\n\
         sasl.enabled.mechanisms=PLAIN\n\
         listener.name.sasl_ssl.plain.sasl.jaas.config=\
         org.apache.kafka.common.security.plain.PlainLoginModule required \
         user_{USER}=\"{PASSWORD}\";\n\
         listener.name.sasl_ssl.ssl.keystore.type=PEM\n\
         listener.name.sasl_ssl.ssl.keystore.location={keys}\n\
         log.dirs={data}\nnum.partitions=4\nauto.create.topics.enable=false\n\
         group.initial.rebalance.delay.ms=0\ngroup.min.session.timeout.ms=1000\n\
         offsets.topic.replication.factor=1\noffsets.topic.num.partitions=4\n\
         transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
         transaction.state.log.num.partitions=4\n\
         share.coordinator.state.topic.replication.factor=1\n\
         share.coordinator.state.topic.min.isr=1\n\
         log.segment.bytes=67108864\nlog.cleaner.dedupe.buffer.size=16777216\n\
         controlled.shutdown.enable=false\n"
    )
}
