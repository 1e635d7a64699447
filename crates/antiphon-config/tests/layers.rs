//! How the layers add up, and what is known of them afterwards.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

use antiphon_config::{HumanDuration, Secret, Settings, Sources};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
struct Relay {
    lanes: u32,
    poll: HumanDuration,
    ratio: f64,
    topics: Vec<String>,
    ports: Vec<u16>,
    enabled: bool,
    note: Option<String>,
    backoff: Backoff,
}

#[derive(Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Backoff {
    #[default]
    None,
    Fixed(HumanDuration),
    Growing {
        first: HumanDuration,
        factor: f64,
    },
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            lanes: 4,
            poll: HumanDuration::from_millis(50),
            ratio: 1.0,
            topics: Vec::new(),
            ports: Vec::new(),
            enabled: true,
            note: None,
            backoff: Backoff::None,
        }
    }
}

fn relay(sources: &Sources) -> Relay {
    Settings::load(sources).unwrap().section("relay").unwrap()
}

#[test]
fn what_nobody_sets_has_its_default() {
    assert_eq!(relay(&Sources::new()), Relay::default());
}

#[test]
fn flags_are_above_the_environment_and_that_is_above_the_file() {
    let file = Sources::new().text("antiphon.toml", "[relay]\nlanes = 1\nratio = 1\n");
    assert_eq!(relay(&file).lanes, 1);
    let environment = file.environment([("ANTIPHON__RELAY__LANES", "2")]);
    assert_eq!(relay(&environment).lanes, 2);
    let flags = environment.set("--lanes", "relay.lanes", 3).set("--lanes", "relay.lanes", 4);
    assert_eq!(relay(&flags), Relay { lanes: 4, ..Relay::default() });
}

#[test]
fn text_from_the_environment_takes_the_type_that_is_asked_for() {
    let read = relay(&Sources::new().environment([
        ("ANTIPHON__RELAY__LANES", "8"),
        ("ANTIPHON__RELAY__POLL", "1m 30s"),
        ("ANTIPHON__RELAY__RATIO", "0.5"),
        ("ANTIPHON__RELAY__TOPICS", "orders, stock"),
        ("ANTIPHON__RELAY__PORTS", "1,2"),
        ("ANTIPHON__RELAY__ENABLED", "false"),
        ("ANTIPHON__RELAY__NOTE", "8"),
        ("ANTIPHON__RELAY__BACKOFF__GROWING__FIRST", "1s"),
        ("ANTIPHON__RELAY__BACKOFF__GROWING__FACTOR", "2"),
        ("PATH", "/bin"),
        ("ANTIPHON_CONFIG", "not a setting"),
    ]));
    assert_eq!(
        read,
        Relay {
            lanes: 8,
            poll: HumanDuration::from_secs(90),
            ratio: 0.5,
            topics: vec!["orders".into(), "stock".into()],
            ports: vec![1, 2],
            enabled: false,
            note: Some("8".into()),
            backoff: Backoff::Growing { first: HumanDuration::from_secs(1), factor: 2.0 },
        }
    );
    assert_eq!(relay(&Sources::new().set("--topics", "relay.topics", "")).topics, [""; 0]);
}

#[test]
fn choices_are_written_as_a_word_or_as_a_section() {
    let read = |text: &str| relay(&Sources::new().text("antiphon.toml", text)).backoff;
    assert_eq!(read("relay.backoff = 'none'"), Backoff::None);
    assert_eq!(
        read("relay.backoff = { fixed = '2s' }"),
        Backoff::Fixed(HumanDuration::from_secs(2))
    );
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Database {
    url: String,
    password: Secret,
}

#[test]
fn secrets_come_from_files_beside_the_settings_and_from_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "hunter2\n").unwrap();
    let text = "[database]\nurl = 'x'\npassword = { file = 'password' }\n";
    let file = Sources::new().text(folder.path().join("antiphon.toml"), text);
    let read = |sources: &Sources| {
        Settings::load(sources).unwrap().section::<Database>("database").unwrap()
    };
    assert_eq!(read(&file).password.expose(), "hunter2");
    let variable = file.environment([("ANTIPHON__DATABASE__PASSWORD", "swordfish")]);
    let database = read(&variable);
    assert_eq!(database.password.expose(), "swordfish");
    assert!(format!("{database:?}").contains("[redacted]"), "{database:?}");
}

#[test]
fn what_is_in_force_is_described_with_where_it_comes_from() {
    let text = "[database]\nurl = 'postgres://shop:hunter2@db/shop'\n[relay]\nlanes = 2\n";
    let sources = Sources::new()
        .text("antiphon.toml", text)
        .environment([
            ("ANTIPHON__DATABASE__PASSWORD", "hunter2"),
            ("ANTIPHON__RELAY__TOPICS", "a,b"),
        ])
        .set("--poll", "relay.poll", "1s");
    let settings = Settings::load(&sources).unwrap();
    let _: Database = settings.section("database").unwrap();
    let _: Relay = settings.section("relay").unwrap();
    let _: Relay = settings.section("relay").unwrap();
    settings.finish().unwrap();
    let described = settings.describe();
    let find = |name: &str| {
        let found: Vec<_> = described.iter().filter(|one| one.setting == name).collect();
        assert_eq!(found.len(), 1, "{name} in {described:?}");
        (found[0].value.clone(), found[0].origin.clone())
    };
    let url = json!("postgres://shop:***@db/shop");
    assert_eq!(find("database.url"), (url, "antiphon.toml:2:7".into()));
    let variable = "environment variable ANTIPHON__DATABASE__PASSWORD";
    assert_eq!(find("database.password"), (json!("[redacted]"), variable.into()));
    assert_eq!(find("relay.lanes"), (json!(2), "antiphon.toml:4:9".into()));
    assert_eq!(find("relay.poll"), (json!("1s"), "--poll".into()));
    assert_eq!(find("relay.enabled"), (json!(true), "default".into()));
    assert_eq!(find("relay.topics").0, json!(["a", "b"]));
    assert!(!format!("{described:?}").contains("hunter2"));
}

#[test]
fn sections_named_by_the_user_can_be_listed() {
    let text = "[consumers.points]\n[consumers.audit]\n[relay]\n";
    let settings = Settings::load(&Sources::new().text("antiphon.toml", text)).unwrap();
    assert_eq!(settings.names("consumers"), ["audit", "points"]);
    assert!(settings.contains("relay") && !settings.contains("server"));
    assert_eq!(settings.names("nothing"), [""; 0]);
}
