//! The servers in containers, where they cannot be installed and Docker answers.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use test_servers::Service;

use crate::process::{run, works};

/// Whether Docker with Compose is there and its engine answers.
pub(crate) fn answer() -> bool {
    works("docker", &["compose", "version"]) && works("docker", &["info"])
}

/// Starts servers and waits until their health checks pass.
pub(crate) fn up(root: &Path, services: &[Service]) -> Result<(), String> {
    let mut command = compose(root)?;
    command.args(["up", "--detach", "--wait", "--wait-timeout", "300"]);
    run(command.args(services.iter().map(|service| service.name())))
}

/// Stops and removes those of the servers that run in containers.
pub(crate) fn down(root: &Path, services: &[Service]) -> Result<(), String> {
    if !answer() {
        return Ok(());
    }
    let listed = compose(root)?.args(["ps", "--services"]).stderr(Stdio::null()).output();
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let listed = listed.unwrap_or_default();
    let running: Vec<&str> = services
        .iter()
        .map(|service| service.name())
        .filter(|name| listed.lines().any(|line| line.trim() == *name))
        .collect();
    if running.is_empty() {
        return Ok(());
    }
    run(compose(root)?.args(["rm", "--stop", "--force", "--volumes"]).args(running))
}

fn compose(root: &Path) -> Result<Command, String> {
    let certificates: PathBuf = test_servers::certificates().map_err(|error| error.to_string())?;
    let mut command = Command::new("docker");
    command.arg("compose").arg("--file").arg(root.join("deploy/compose.yaml"));
    command.env("ANTIPHON_CERTIFICATES", certificates);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_listen_where_the_tests_look() {
        let text = include_str!("../../../deploy/compose.yaml");
        for service in Service::ALL {
            assert!(text.contains(&format!("\n  {}:\n    image:", service.name())), "{service:?}");
            let ports = service.ports();
            for port in [ports.plain, ports.tls, ports.admin].into_iter().filter(|port| *port != 0)
            {
                assert!(text.contains(&format!("127.0.0.1:{port}:")), "{service:?} {port}");
            }
        }
    }
}
