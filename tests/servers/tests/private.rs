//! Every server, started for one test: it keeps its data through a kill, pauses, speaks TLS, and
//! leaves nothing behind.

use std::process::{Command, Stdio};

use test_servers::{Private, Service, State, certificate_authority};

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

/// Starts a server, treats it badly, and sees that it is gone in the end.
fn treat_badly(service: Service) -> Result {
    let private = Private::start(service)?;
    let instance = private.instance().clone();
    let State::Ready { pid } = instance.state() else {
        return Err(format!("{service:?} is {:?}", instance.state()).into());
    };
    assert!(test_servers::memory(pid) > 1 << 20, "{service:?} uses memory");

    instance.kill();
    assert_eq!(instance.state(), State::Stopped, "{service:?} after a kill");
    private.start_again()?;
    assert!(matches!(instance.state(), State::Ready { .. }), "{service:?} after a start");

    assert!(instance.stop()?, "{service:?} ran before it was stopped");
    assert_eq!(instance.state(), State::Stopped, "{service:?} after a stop");
    private.start_again()?;

    instance.pause();
    assert!(matches!(instance.state(), State::Silent { .. }), "{service:?} while it is paused");
    instance.resume();
    assert!(matches!(instance.state(), State::Ready { .. }), "{service:?} after a pause");

    // ZooKeeper and Knot of Debian cannot.
    if !matches!(service, Service::Zookeeper | Service::Knot) {
        speak_tls(service, instance.ports.tls)?;
    }

    let (home, data) = (instance.home.clone(), instance.data());
    assert!(data.exists(), "{service:?} keeps data in {}", data.display());
    drop(private);
    assert_eq!(instance.state(), State::Stopped, "{service:?} after the end");
    assert!(!home.exists() && !data.exists(), "{service:?} leaves nothing behind");
    Ok(())
}

/// Shakes hands, and checks the certificate and the name in it.
fn speak_tls(service: Service, port: u16) -> Result {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-brief", "-verify_return_error", "-verify_ip", "127.0.0.1"]);
    command.arg("-CAfile").arg(certificate_authority());
    command.arg("-connect").arg(format!("127.0.0.1:{port}"));
    match service {
        Service::Postgres => command.args(["-starttls", "postgres"]),
        Service::Mariadb => command.args(["-starttls", "mysql"]),
        // Speaks before it shakes hands, as none of the protocols that openssl knows.
        Service::Nats => return Ok(()),
        _ => &mut command,
    };
    let output = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Verification: OK"), "{service:?}: {said}");
    Ok(())
}

#[test]
fn postgres() -> Result {
    treat_badly(Service::Postgres)
}

#[test]
fn mariadb() -> Result {
    treat_badly(Service::Mariadb)
}

#[test]
fn redis() -> Result {
    treat_badly(Service::Redis)
}

#[test]
fn nats() -> Result {
    treat_badly(Service::Nats)
}

#[test]
fn rabbitmq() -> Result {
    treat_badly(Service::Rabbitmq)
}

#[test]
fn mosquitto() -> Result {
    treat_badly(Service::Mosquitto)
}

#[test]
fn kafka() -> Result {
    treat_badly(Service::Kafka)
}

#[test]
fn etcd() -> Result {
    treat_badly(Service::Etcd)
}

#[test]
fn zookeeper() -> Result {
    treat_badly(Service::Zookeeper)
}

#[test]
fn consul() -> Result {
    treat_badly(Service::Consul)
}

#[test]
fn knot() -> Result {
    treat_badly(Service::Knot)
}

#[test]
fn kubernetes() -> Result {
    treat_badly(Service::Kubernetes)
}
