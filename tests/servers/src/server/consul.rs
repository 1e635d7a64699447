//! Consul, one server that is its own agent, built from its published Go module.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::Description;
use super::golang::Program;
use crate::instance::Instance;
use crate::place::{create, find, write};
use crate::{Service, Trouble, wire};

/// The last version all of whose modules are published: later ones need parts that exist in their
/// repository alone.
const PROGRAM: Program = Program {
    service: Service::Consul,
    name: "consul",
    version: "1.14.11",
    package: "github.com/hashicorp/consul",
    module: "module antiphon/consul\n\ngo 1.20\n\nrequire github.com/hashicorp/consul v1.14.11\n",
    main: None,
};

#[derive(Debug)]
pub(super) struct Consul;

impl Description for Consul {
    fn packages(&self) -> &'static [&'static str] {
        &["golang-go", "openssl"]
    }

    fn version(&self) -> Result<String, Trouble> {
        match find("consul", &[]) {
            Some(tool) => super::version_of(Command::new(tool).arg("version")),
            None => PROGRAM.version(),
        }
    }

    fn prepare(&self, at: &Instance, certificates: &Path) -> Result<(), Trouble> {
        if find("consul", &[]).is_none() {
            PROGRAM.build()?;
        }
        let data = self.data(at);
        create(&data)?;
        let (plain, secure) = (at.ports.plain, at.ports.tls);
        let [server, serf, ..] = at.ports.inner;
        let (data, tls) = (data.display(), certificates.display());
        let settings = format!(
            "{{\"server\": true, \"bootstrap_expect\": 1, \"node_name\": \"test\",\n\
             \"bind_addr\": \"127.0.0.1\", \"client_addr\": \"127.0.0.1\", \"data_dir\": \"{data}\",\n\
             \"ports\": {{\"http\": {plain}, \"https\": {secure}, \"server\": {server},\n\
             \"serf_lan\": {serf}, \"serf_wan\": -1, \"dns\": -1, \"grpc\": -1, \"grpc_tls\": -1}},\n\
             \"tls\": {{\"defaults\": {{\"cert_file\": \"{tls}/server.pem\",\n\
             \"key_file\": \"{tls}/server.key\"}}}},\n\
             \"performance\": {{\"raft_multiplier\": 1}}, \"connect\": {{\"enabled\": false}},\n\
             \"limits\": {{\"http_max_conns_per_client\": 4000}},\n\
             \"disable_update_check\": true, \"log_level\": \"warn\"}}\n"
        );
        write(&at.file("consul.json"), &settings)
    }

    fn command(&self, at: &Instance) -> Result<Command, Trouble> {
        let mut command = Command::new(find("consul", &[]).unwrap_or_else(|| PROGRAM.binary()));
        command.arg("agent").arg("-config-file").arg(at.file("consul.json"));
        Ok(command)
    }

    fn ready(&self, at: &Instance) -> Result<(), String> {
        let answer = wire::ask(at.ports.plain, b"GET /v1/status/leader HTTP/1.0\r\n\r\n")?;
        let answer = String::from_utf8_lossy(&answer);
        let leader = answer.lines().last().unwrap_or_default();
        if leader.starts_with("\"127.") {
            return Ok(());
        }
        Err(format!("has no leader: {leader:?}"))
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(120)
    }
}
