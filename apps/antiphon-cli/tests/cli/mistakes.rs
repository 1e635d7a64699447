//! What goes wrong is said in one line that names the cause.

use std::net::TcpListener;
use std::process::Stdio;

use crate::support::{command, text};

#[test]
fn a_database_that_is_not_there_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let dir = format!("database.dir={}", folder.path().display());
    let output =
        command().args(["--set", &dir, "sagas", "list", "--service", "orders"]).output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("orders.db is not there"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn settings_that_name_no_service_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let dir = format!("database.dir={}", folder.path().display());
    let output = command().args(["--set", &dir, "outbox"]).output().unwrap();
    let error = text(&output.stderr);
    assert!(error.contains("database.services") && error.contains("--service"), "{error}");
}

#[test]
fn an_unknown_setting_and_an_unknown_scheme_are_refused() {
    for (setting, word) in
        [("broker.colour=blue", "colour"), ("broker.url=zeromq://127.0.0.1", "zeromq")]
    {
        let output = command().args(["--set", setting, "topics"]).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.starts_with("error: ") && error.contains(word), "{error}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_mistake() {
    let mut command = command();
    command.args(["--set", "broker.url=memory:", "topics"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn the_doctor_says_what_a_stopped_server_means() {
    // A port that nobody listens on.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("broker.url=nats://127.0.0.1:{port}");
    let output = command().args(["--json", "--set", &url, "doctor", "--broker"]).output().unwrap();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{out}{error}");
    let findings: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(findings[0]["severity"], "problem", "{out}");
    assert!(
        findings[0]["advice"].as_str().is_some_and(|text| text.contains("broker.url")),
        "{out}"
    );
    assert!(error.contains("one problem must be solved"), "{error}");
}
