//! Opening: who is let in, and what is said to whoever is not.

use std::net::Ipv4Addr;
use std::time::Duration;

use antiphon_broker_mqtt::{MqttBroker, OpenError, Settings};
use antiphon_config::{ByteSize, HumanDuration, Secret};
use antiphon_messaging::{Broker, Durability};
use antiphon_testing::services::{PASSWORD, Service, USER, certificate_authority};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::custom::Mosquitto;
use crate::scratch::Scratch;
use crate::support::{declare, handle, join, message, open, publish};

async fn refusal(settings: Settings) -> OpenError {
    MqttBroker::open(settings).await.expect_err("it is refused")
}

fn secure(url: &str) -> Settings {
    let mut settings = Scratch::new().settings.clone();
    url.clone_into(&mut settings.url);
    settings.ca_file = Some(certificate_authority());
    settings
}

/// The TLS address without user and password.
fn bare() -> String {
    Service::Mosquitto.tls_url().replace(&format!("{USER}:{PASSWORD}@"), "")
}

#[tokio::test]
async fn tls_and_a_password_let_in() {
    let mut scratch = Scratch::new();
    scratch.settings.url = Service::Mosquitto.tls_url();
    scratch.settings.ca_file = Some(certificate_authority());
    let broker = scratch.open().await;
    declare(&broker, "t", "g").await;
    let _receipt = publish(&broker, message("t", "k", "secret")).await.expect("it is taken");
    let mut source = join(&broker, "t", "g").await;
    assert_eq!(handle(&mut source, 1).await, ["secret"]);
    let mut beside = secure(&bare());
    beside.user = Some(USER.into());
    beside.password = Some(Secret::new(PASSWORD.into()));
    open(beside).await;
}

#[tokio::test]
async fn a_wrong_or_missing_password_is_told() {
    let mut wrong = secure(&bare());
    wrong.user = Some(USER.into());
    wrong.password = Some(Secret::new("wrong".into()));
    for settings in [wrong, secure(&bare())] {
        let error = refusal(settings).await;
        assert!(matches!(error, OpenError::Credentials { .. }), "{error:?}");
        assert!(!error.is_transient() && !error.to_string().contains("wrong\""), "{error}");
    }
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_told() {
    let mut settings = secure(&Service::Mosquitto.tls_url());
    settings.ca_file = None;
    let error = refusal(settings).await;
    assert!(matches!(error, OpenError::Tls { .. }), "{error:?}");
    assert!(error.to_string().contains("broker.mqtt.ca_file"), "{error}");
}

#[tokio::test]
async fn files_that_are_no_certificates_are_told_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "").expect("it is written");
    for path in [empty, folder.path().join("missing.pem")] {
        let mut settings = secure(&Service::Mosquitto.tls_url());
        settings.ca_file = Some(path.clone());
        let error = refusal(settings).await;
        assert!(matches!(error, OpenError::File { .. }), "{error:?}");
        assert!(error.to_string().contains(&*path.to_string_lossy()), "{error}");
    }
}

#[tokio::test]
async fn nobody_there_is_told() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let error = refusal(Settings::at(format!("mqtt://{address}"))).await;
    assert!(matches!(error, OpenError::Unreachable { .. }) && error.is_transient(), "{error:?}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

/// A listener that answers every connection with these bytes, and then waits.
async fn answering(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(bytes).await;
            open.push(stream);
        }
    });
    format!("mqtt://{address}")
}

#[tokio::test]
async fn a_server_that_says_nothing_is_told() {
    let mut settings = Settings::at(answering(b"").await);
    settings.connect_timeout = HumanDuration(Duration::from_millis(200));
    let error = refusal(settings).await;
    assert!(matches!(error, OpenError::Silent { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_of_an_older_protocol_and_one_of_another_are_told() {
    // What MQTT 3.1.1 answers to a version that it does not know.
    let error = refusal(Settings::at(answering(b"\x20\x02\x00\x01").await)).await;
    assert!(matches!(error, OpenError::Version { .. }), "{error:?}");
    const WEB: &[u8] =
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\
        Connection: close\r\n\r\n";
    let error = refusal(Settings::at(answering(WEB).await)).await;
    assert!(matches!(error, OpenError::Ended { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_takes_too_little_is_told_what_to_change() {
    let server = Mosquitto::start("max_packet_size 100000");
    let error = refusal(Settings::at(server.url())).await;
    assert!(matches!(error, OpenError::TooLittle { .. }), "{error:?}");
    assert!(error.to_string().contains("max_packet_size"), "{error}");
    let mut settings = Settings::at(server.url());
    settings.message_max = ByteSize(90_000);
    let broker = open(settings).await;
    assert_eq!(broker.capabilities().message_bytes_max, 90_000);
    drop(server);
    let server = Mosquitto::start("retain_available false");
    let error = refusal(Settings::at(server.url())).await;
    assert!(error.to_string().contains("retain"), "{error}");
}

#[tokio::test]
async fn a_setting_that_cannot_be_is_told_before_anything_else() {
    let mut settings = Settings::at("mqtt://host.invalid");
    settings.lanes = 5;
    let error = refusal(settings).await;
    assert!(matches!(&error, OpenError::Settings(wrong) if wrong.setting == "lanes"), "{error:?}");
}

#[tokio::test]
async fn lanes_are_fixed_when_a_topic_is_declared() {
    let scratch = Scratch::new();
    let broker = scratch.open().await;
    declare(&broker, "t", "g").await;
    let mut other = scratch.settings.clone();
    other.lanes = 4;
    let other = open(other).await;
    let topology = antiphon_messaging::Topology { topics: vec!["t".into()], groups: Vec::new() };
    let error = other.declare(&topology).await.expect_err("it exists with other lanes");
    assert!(!error.transient && error.to_string().contains("16 lanes"), "{error}");
    // Fewer lanes work as well, where nothing exists yet.
    declare(&other, "small", "few").await;
    let mut source = join(&other, "small", "few").await;
    for n in 0..20 {
        let sent = publish(&broker, message("small", &n.to_string(), &n.to_string())).await;
        let _receipt = sent.expect("whoever publishes follows the record of the topic");
    }
    assert_eq!(handle(&mut source, 20).await.len(), 20);
    assert_eq!(broker.capabilities().durability, Durability::Memory);
}

/// A certificate of its own for the client, and the authority that vouches for it.
fn client_certificate(folder: &std::path::Path) {
    let openssl = |arguments: &str| {
        let mut command = std::process::Command::new("openssl");
        let done = command.args(arguments.split(' ')).current_dir(folder).output();
        let done = done.expect("openssl is installed");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!("req -x509 {key} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"));
    openssl(&format!("req {key} -subj /CN=client -keyout client.key -out client.csr"));
    // Version 3, which rustls insists on.
    std::fs::write(folder.join("ext"), "basicConstraints=CA:FALSE").expect("it is written");
    openssl(
        "x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext \
         -out client.pem",
    );
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_one() {
    let folder = tempfile::tempdir().expect("a folder");
    client_certificate(folder.path());
    let own = certificate_authority();
    let tls = own.parent().expect("a folder").display().to_string();
    let server = Mosquitto::start(&format!(
        "certfile {tls}/server.pem\nkeyfile {tls}/server.key\ncafile {}/ca.pem\n\
         require_certificate true",
        folder.path().display()
    ));
    let mut settings = Settings::at(server.url().replace("mqtt://", "mqtts://"));
    settings.ca_file = Some(own.clone());
    let error = refusal(settings.clone()).await;
    assert!(matches!(error, OpenError::Tls { .. } | OpenError::Ended { .. }), "{error:?}");
    settings.certificate_file = Some(folder.path().join("client.pem"));
    settings.key_file = Some(folder.path().join("client.key"));
    open(settings).await;
}
