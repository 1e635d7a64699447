//! Every mistake in settings gets one line that says where it is and what to write instead.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

use std::collections::BTreeMap;
use std::path::Path;

use antiphon_config::{ByteSize, Error, HumanDuration, Secret, Settings, Sources};
use serde::{Deserialize, Serialize};

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Fast,
    Safe,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Server {
    listen: std::net::SocketAddr,
    connections_max: u16,
    timeout: HumanDuration,
    body_max: ByteSize,
    tls: bool,
    mode: Mode,
    hosts: Vec<String>,
    limits: Limits,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8080).into(),
            connections_max: 100,
            timeout: HumanDuration::from_secs(10),
            body_max: ByteSize::mib(4),
            tls: false,
            mode: Mode::Fast,
            hosts: Vec::new(),
            limits: Limits::default(),
        }
    }
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    streams: Option<u32>,
    ratio: f64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Database {
    url: String,
    #[serde(default)]
    password: Option<Secret>,
}

fn load(sources: &Sources) -> Result<Server, Error> {
    let settings = Settings::load(sources)?;
    let server = settings.section("server")?;
    settings.finish()?;
    Ok(server)
}

/// The line for a mistake in `antiphon.toml`.
fn in_file(text: &str) -> String {
    let error = load(&Sources::new().text("antiphon.toml", text)).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

/// The line for a mistake in a variable.
fn in_variable(name: &str, value: &str) -> String {
    let error = load(&Sources::new().environment([(name, value)])).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn unknown_settings_are_refused_with_their_place_and_the_nearest_known_one() {
    for (text, line) in [
        (
            "[server]\nlisten = '127.0.0.1:1'\nlisen = '127.0.0.1:2'\n",
            "antiphon.toml:3:1: `server.lisen`: unknown setting; did you mean `listen`?",
        ),
        (
            "server.limits = { ratio = 0.5, stream = 4 }\n",
            "antiphon.toml:1:32: `server.limits.stream`: unknown setting; did you mean `streams`?",
        ),
        (
            "[server]\ncolour = 'red'\n[server.limits]\n",
            "antiphon.toml:2:1: `server.colour`: unknown setting; known here are `listen`, \
             `connections_max`, `timeout`, `body_max`, `tls`, `mode`, `hosts` or `limits`",
        ),
        ("[serwer]\n", "antiphon.toml:1:2: `serwer`: unknown setting; did you mean `server`?"),
        (
            "'größe' = 1\n\n[server]\n",
            "antiphon.toml:1:1: `größe`: unknown setting; known here are `server`",
        ),
    ] {
        assert_eq!(in_file(text), line);
    }
}

#[test]
fn wrong_types_are_refused_with_what_was_expected_and_found() {
    for (text, line) in [
        (
            "[server]\nconnections_max = 'many'\n",
            "antiphon.toml:2:19: `server.connections_max`: expected a whole number from 0 to 65535, \
             found string \"many\"",
        ),
        (
            "[server]\nconnections_max = 70000\n",
            "antiphon.toml:2:19: `server.connections_max`: expected a whole number from 0 to 65535, \
             found integer `70000`",
        ),
        (
            "[server]\nconnections_max = -1\n",
            "antiphon.toml:2:19: `server.connections_max`: expected a whole number from 0 to 65535, \
             found integer `-1`",
        ),
        (
            "[server]\ntls = 1\n",
            "antiphon.toml:2:7: `server.tls`: expected true or false, found integer `1`",
        ),
        (
            "[server]\ntimeout = 10\n",
            "antiphon.toml:2:11: `server.timeout`: expected a duration such as \"250ms\", \"10s\" or \
             \"1m 30s\", found integer `10`",
        ),
        (
            "[server]\ntimeout = '10 parsecs'\n",
            "antiphon.toml:2:11: `server.timeout`: expected a duration such as \"250ms\", \"10s\" or \
             \"1m 30s\", found string \"10 parsecs\"",
        ),
        (
            "[server]\nbody_max = '4 bananas'\n",
            "antiphon.toml:2:12: `server.body_max`: expected a size such as 4096, \"64KiB\" or \
             \"4MiB\", found string \"4 bananas\"",
        ),
        (
            "[server]\nmode = 'fsat'\n",
            "antiphon.toml:2:8: `server.mode`: expected `fast` or `safe`, found \"fsat\"; did you mean \
             \"fast\"?",
        ),
        (
            "[server]\nhosts = ['a', 2]\n",
            "antiphon.toml:2:15: `server.hosts[1]`: expected a string, found integer `2`",
        ),
        (
            "[server]\nlimits = 'none'\n",
            "antiphon.toml:2:10: `server.limits`: expected a section, found string \"none\"",
        ),
        ("server = 1\n", "antiphon.toml:1:10: `server`: expected a section, found integer `1`"),
        (
            "[server]\nlisten = 'localhost'\n",
            "antiphon.toml:2:10: `server.listen`: invalid socket address syntax",
        ),
        (
            "[server]\nlimits.ratio = 99999999999999999999\n",
            "antiphon.toml:2:16: the number 99999999999999999999 is too large",
        ),
    ] {
        assert_eq!(in_file(text), line);
    }
}

#[test]
fn text_that_is_not_toml_is_refused_with_its_place() {
    assert!(in_file("[server\n").starts_with("antiphon.toml:1:8: not valid TOML: "));
    assert!(in_file("[server]\nlisten = \n").starts_with("antiphon.toml:2:"));
    let twice = in_file("[server]\ntls = true\ntls = false\n");
    assert!(twice.starts_with("antiphon.toml:3:1: not valid TOML: duplicate key"), "{twice}");
}

#[test]
fn mistakes_in_the_environment_name_the_variable() {
    for (name, value, line) in [
        (
            "ANTIPHON__SERVER__CONNECTIONS_MAX",
            "many",
            "environment variable ANTIPHON__SERVER__CONNECTIONS_MAX: `server.connections_max`: expected \
             a whole number from 0 to 65535, found string \"many\"",
        ),
        (
            "ANTIPHON__SERVER__LISEN",
            "x",
            "environment variable ANTIPHON__SERVER__LISEN: `server.lisen`: unknown setting; did you mean \
             `listen`?",
        ),
        (
            "ANTIPHON__SERVER__TLS",
            "yes",
            "environment variable ANTIPHON__SERVER__TLS: `server.tls`: expected true or false, found \
             string \"yes\"",
        ),
        (
            "ANTIPHON__SERVER____TLS",
            "true",
            "environment variable ANTIPHON__SERVER____TLS: not the name of a setting: expected \
             ANTIPHON__SECTION__KEY",
        ),
        (
            "ANTIPHON__SERVER",
            "x",
            "environment variable ANTIPHON__SERVER: `server`: expected a section, found string \"x\"",
        ),
    ] {
        assert_eq!(in_variable(name, value), line);
    }
}

#[test]
fn variables_that_contradict_each_other_are_refused() {
    for pair in [
        [("ANTIPHON__SERVER", "1"), ("ANTIPHON__SERVER__TLS", "true")],
        [("ANTIPHON__SERVER__TLS", "true"), ("ANTIPHON__SERVER", "1")],
    ] {
        let error = load(&Sources::new().environment(pair)).unwrap_err().to_string();
        assert!(error.contains("variable ANTIPHON__SERVER__TLS"), "{error}");
        assert!(error.contains("contradict each other"), "{error}");
    }
}

#[test]
fn mistakes_in_flags_name_the_flag() {
    let sources = Sources::new().set("--listen", "server.listen", "nowhere");
    let error = load(&sources).unwrap_err().to_string();
    assert_eq!(error, "--listen: `server.listen`: invalid socket address syntax");
}

#[test]
fn what_is_required_and_missing_is_named() {
    let read = |text: &str| {
        let settings = Settings::load(&Sources::new().text("antiphon.toml", text)).unwrap();
        settings.section::<Database>("database").unwrap_err().to_string()
    };
    assert_eq!(
        read("[database]\n"),
        "antiphon.toml:1:1: `database`: `url` is required here and not set"
    );
    assert_eq!(
        read(""),
        "settings: `database`: `url` is required and not set: write it under [database] in \
         antiphon.toml, or set ANTIPHON__DATABASE__URL"
    );
}

#[test]
fn a_file_that_was_named_must_be_there_and_be_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.toml");
    let error = load(&Sources::new().file(&path)).unwrap_err().to_string();
    assert!(error.starts_with("cannot read the settings file "), "{error}");
    assert!(error.contains("shop.toml: No such file"), "{error}");
    std::fs::write(&path, b"[server]\n\xff").unwrap();
    let error = load(&Sources::new().file(&path)).unwrap_err().to_string();
    assert!(error.ends_with("shop.toml: not valid UTF-8 (first bad byte at offset 9)"), "{error}");
    let named = [("ANTIPHON_CONFIG", folder.path().join("other.toml").display().to_string())];
    let error = load(&Sources::new().environment(named).search()).unwrap_err().to_string();
    assert!(error.contains("other.toml"), "{error}");
}

/// The line for a mistake in a secret whose settings file is in `folder`.
fn in_secret(folder: &Path, value: &str) -> String {
    let text = format!("[database]\nurl = 'x'\npassword = {value}\n");
    let sources = Sources::new().text(folder.join("antiphon.toml"), text);
    let settings = Settings::load(&sources).unwrap();
    let error = settings.section::<Database>("database").unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn secrets_that_cannot_be_had_are_named_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    for (value, problem) in [
        ("'hunter2'", "expected a secret by reference: { file = \"…\" } or { env = \"…\" }"),
        ("{ file = 'gone' }", "cannot read the secret file "),
        ("{ env = 'ANTIPHON_TEST_NO_SUCH' }", "variable ANTIPHON_TEST_NO_SUCH is not set"),
        ("{ vault = 'x' }", "found `vault`"),
        ("{ file = 'a', env = 'b' }", "expected a secret by reference"),
        ("{ file = 5 }", "expected a secret by reference"),
        ("5", "expected a secret by reference"),
    ] {
        let error = in_secret(folder.path(), value);
        assert!(error.contains("antiphon.toml:3:12: `database.password`: "), "{error}");
        assert!(error.contains(problem), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn the_same_mistake_is_found_in_named_sections() {
    let text = "[database.main]\nurl = 'x'\n[database.other]\nurl = 'y'\npasword = 1\n";
    let settings = Settings::load(&Sources::new().text("antiphon.toml", text)).unwrap();
    let read = settings.section::<BTreeMap<String, Database>>("database");
    assert_eq!(
        read.unwrap_err().to_string(),
        "antiphon.toml:5:1: `database.other.pasword`: unknown setting; did you mean `password`?"
    );
}
