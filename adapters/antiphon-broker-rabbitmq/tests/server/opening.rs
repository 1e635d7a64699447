//! Opening a broker, and what is said when that is not possible.

use std::io::Write;
use std::time::Duration;

use antiphon_broker_rabbitmq::{OpenError, RabbitmqBroker, Settings};
use antiphon_messaging::Broker;
use antiphon_testing::services::{Service, certificate_authority};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{bare, handle, join, message, open, place, publish, topology};

fn over_tls(url: &str) -> String {
    url.replace(&Service::Rabbitmq.url(), &Service::Rabbitmq.tls_url())
}

async fn refused(settings: Settings) -> OpenError {
    RabbitmqBroker::open(settings).await.expect_err("it cannot be opened")
}

#[tokio::test]
async fn messages_travel_over_tls_with_credentials() {
    let (_vhost, mut settings) = place().await;
    settings.url = over_tls(&settings.url);
    settings.ca_file = Some(certificate_authority());
    let broker = open(settings).await;
    assert!(broker.server_version().starts_with(char::is_numeric));
    let (topic, group) = ("tls".to_owned(), "tls.group".to_owned());
    broker.declare(&topology(&topic, &[&group], false)).await.unwrap();
    let _receipt = publish(&broker, message(&topic, "k", "secret")).await.unwrap();
    let mut source = join(&broker, &topic, &group, false).await;
    assert_eq!(handle(&mut source, 1).await, ["secret"]);
}

#[tokio::test]
async fn a_certificate_of_nobody_we_know_is_refused() {
    let (_vhost, mut settings) = place().await;
    settings.url = over_tls(&settings.url);
    let error = refused(settings).await;
    assert!(matches!(error, OpenError::Tls { .. }), "{error}");
    assert!(error.to_string().contains("ca_file"), "{error}");
}

#[tokio::test]
async fn files_that_are_no_certificates_are_named() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"nonsense").unwrap();
    let (_vhost, settings) = place().await;
    for path in [file.path().to_owned(), "/nowhere/ca.pem".into()] {
        let mut settings = settings.clone();
        settings.url = over_tls(&settings.url);
        settings.ca_file = Some(path.clone());
        let error = refused(settings).await;
        assert!(matches!(error, OpenError::File { .. }), "{error}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}

#[tokio::test]
async fn wrong_credentials_are_told_from_everything_else() {
    let (_vhost, mut settings) = place().await;
    let (_, place) = settings.url.rsplit_once('@').unwrap();
    settings.url = format!("amqp://antiphon:wrong@{place}");
    let error = refused(settings).await;
    assert!(matches!(&error, OpenError::Credentials { user, .. } if user == "antiphon"), "{error}");
}

#[tokio::test]
async fn a_virtual_host_that_is_not_there_is_named() {
    let (_vhost, mut settings) = place().await;
    settings.url = format!("{}/nowhere", Service::Rabbitmq.url());
    let error = refused(settings).await;
    assert!(matches!(&error, OpenError::VirtualHost { name, .. } if name == "nowhere"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    for scheme in ["amqp", "amqps"] {
        let error = refused(Settings::at(format!("{scheme}://127.0.0.1:{port}"))).await;
        assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
    }
}

#[tokio::test]
async fn somebody_who_says_nothing_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut settings = Settings::at(format!("amqp://{}", listener.local_addr().unwrap()));
    settings.connect_timeout = Duration::from_millis(200).into();
    let error = refused(settings).await;
    assert!(error.to_string().contains("no answer within"), "{error}");
}

#[tokio::test]
async fn somebody_else_is_not_rabbitmq() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut header = [0; 8];
        stream.read_exact(&mut header).await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    let error = refused(Settings::at(url)).await;
    assert!(matches!(error, OpenError::NotRabbitmq { .. }), "{error}");
    assert!(error.to_string().contains("HTTP/1."), "{error}");
}

#[tokio::test]
async fn a_queue_with_other_settings_is_an_error_that_names_the_difference() {
    let (vhost, settings) = place().await;
    let broker = open(settings).await;
    let (topic, group) = ("other".to_owned(), "other.group".to_owned());
    let (_connection, channel) = bare(&vhost.url()).await;
    let classic = QueueDeclareOptions::durable();
    channel.queue_declare(group.as_str().into(), classic, FieldTable::default()).await.unwrap();
    let error = broker.declare(&topology(&topic, &[&group], false)).await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains(&group) && said.contains("x-queue-type"), "{said}");
    assert!(!error.transient, "{said}");
}

#[tokio::test]
async fn a_group_does_not_change_its_shape_unnoticed() {
    let (_vhost, settings) = place().await;
    let (mut narrow, mut wide) = (settings.clone(), settings.clone());
    (narrow.lanes, wide.lanes) = (2, 8);
    let broker = open(settings).await;
    let (narrow, wide) = (open(narrow).await, open(wide).await);
    let (topic, group, plain) =
        ("shape".to_owned(), "shape.group".to_owned(), "shape.plain".to_owned());
    broker.declare(&topology(&topic, &[&group], true)).await.unwrap();
    broker.declare(&topology(&topic, &[&plain], false)).await.unwrap();
    for (other, group, ordered, expected) in [
        (&narrow, &group, true, "more than the 2 lanes"),
        (&wide, &group, true, "fewer than the 8 lanes"),
        (&wide, &group, false, "was declared as ordered"),
        (&wide, &plain, true, "was declared as unordered"),
    ] {
        let error = other.declare(&topology(&topic, &[group], ordered)).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!error.transient);
    }
}

#[tokio::test]
async fn names_that_the_server_would_not_take_are_refused() {
    let (_vhost, settings) = place().await;
    let broker = open(settings).await;
    for wrong in ["", "amq.topic", "antiphon.registry", &"x".repeat(201)] {
        let error = broker.declare(&topology(wrong, &[], false)).await.unwrap_err();
        assert!(!error.transient, "{error}");
    }
}
