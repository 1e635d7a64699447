//! What can be chosen, and what is wrong with a choice.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use antiphon_config::{ByteSize, HumanDuration, Secret};
use antiphon_messaging::{Durability, LANES};
use serde::{Deserialize, Serialize, Serializer};

use crate::names::unescape;

/// How an MQTT broker is used. Shown without the password, also that in the URL.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Settings {
    /// `mqtt://host:port`, or `mqtts://host:port` for TLS; ports 1883 and 8883 unless given. User
    /// and password may be part of it: `mqtts://user:password@host`.
    #[serde(serialize_with = "serialize_url")]
    pub url: String,
    /// The user, if not in the URL.
    pub user: Option<String>,
    /// The password, if not in the URL.
    pub password: Option<Secret>,
    /// The authorities to trust, as a PEM file; those of the system unless given.
    pub ca_file: Option<PathBuf>,
    /// The certificate of this client, as a PEM file. Goes with `key_file`.
    pub certificate_file: Option<PathBuf>,
    /// The key of `certificate_file`, as a PEM file.
    pub key_file: Option<PathBuf>,
    /// What all topics and client ids begin with. Systems with different prefixes do not meet.
    pub prefix: String,
    /// Into how many lanes topics and groups that do not exist yet are divided: 1, 2, 4, 8 or 16.
    /// Every lane of a group is a session at the broker and a connection of the member that has it.
    /// Fixed once a topic was declared.
    pub lanes: u32,
    /// After how long without a sign of life the other side is taken for dead, times one and a
    /// half.
    pub keep_alive: HumanDuration,
    /// How long the broker keeps the messages of a group that nobody reads; for ever unless given.
    pub session_expiry: Option<HumanDuration>,
    /// How many messages may be sent and not confirmed. The server may allow fewer.
    pub publish_window: u16,
    /// How many messages of one lane may be held and not settled.
    pub lane_window: u16,
    /// How long a connection may take.
    pub connect_timeout: HumanDuration,
    /// How long the broker may take to confirm a message.
    pub publish_timeout: HumanDuration,
    /// How long a member may finish what it holds of a lane that another one takes over.
    pub handover_timeout: HumanDuration,
    /// The largest message, attributes included. The server must take a little more.
    pub message_max: ByteSize,
    /// What a confirmed message survives: only whoever runs the server knows. See the README.
    pub durability: Keeping,
    /// What becomes of a message for a topic that no group reads.
    pub unread: Unread,
    /// In which order messages are acknowledged.
    pub acknowledge: Acknowledge,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("url", &without_password(&self.url))
            .field("prefix", &self.prefix)
            .field("lanes", &self.lanes)
            .finish_non_exhaustive()
    }
}

fn serialize_url<S: Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&without_password(url))
}

/// The URL as people may see it.
fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => {
            let login = &url[scheme + 3..at];
            let user = login.split_once(':').map_or(login, |(user, _)| user);
            format!("{}{user}{}", &url[..scheme + 3], &url[at..])
        }
        _ => url.to_owned(),
    }
}

/// What the operator knows of the server's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keeping {
    /// Confirmed messages are gone when the server's process ends badly. True of Mosquitto with any
    /// settings.
    #[default]
    Memory,
    /// They survive the process, not the loss of power.
    PageCache,
    /// They are on disk before they are confirmed.
    Disk,
}

impl Keeping {
    pub(crate) const fn durability(self) -> Durability {
        match self {
            Self::Memory => Durability::Memory,
            Self::PageCache => Durability::PageCache,
            Self::Disk => Durability::Disk,
        }
    }
}

/// What becomes of a message that no group reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unread {
    /// It is refused as unroutable, and waits in the outbox until the first group is declared.
    #[default]
    Refuse,
    /// It is confirmed and gone.
    Drop,
}

/// In which order messages are acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Acknowledge {
    /// As they are settled. Mosquitto, EMQX, HiveMQ, VerneMQ and RabbitMQ know messages by their
    /// packet id and take this.
    #[default]
    Settled,
    /// As they came, as the letter of MQTT has it: what was settled early is acknowledged late, and
    /// comes again if the connection ends before.
    Received,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "mqtt://127.0.0.1:1883".to_owned(),
            user: None,
            password: None,
            ca_file: None,
            certificate_file: None,
            key_file: None,
            prefix: "antiphon".to_owned(),
            lanes: LANES,
            keep_alive: HumanDuration(Duration::from_secs(10)),
            session_expiry: None,
            publish_window: 1_000,
            lane_window: 64,
            connect_timeout: HumanDuration(Duration::from_secs(5)),
            publish_timeout: HumanDuration(Duration::from_secs(10)),
            handover_timeout: HumanDuration(Duration::from_secs(60)),
            message_max: ByteSize(1024 * 1024),
            durability: Keeping::Memory,
            unread: Unread::Refuse,
            acknowledge: Acknowledge::Settled,
        }
    }
}

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{setting}: {problem}", if *setting == "url" { "broker." } else { "broker.mqtt." })]
pub struct SettingsError {
    /// Which one.
    pub setting: &'static str,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

/// Where the server is, and who comes.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
    pub(crate) login: Option<(String, Secret)>,
}

impl Settings {
    /// The defaults at this URL.
    #[must_use]
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// Looks at what can be judged without a server.
    pub(crate) fn check(&self) -> Result<Address, SettingsError> {
        let refuse =
            |setting, problem: &str| Err(SettingsError { setting, problem: problem.to_owned() });
        let address = self.address()?;
        if self.lanes == 0 || !LANES.is_multiple_of(self.lanes) {
            return refuse("lanes", "it must be 1, 2, 4, 8 or 16");
        }
        if self.prefix.is_empty() || self.prefix.starts_with('$') {
            return refuse("prefix", "it must not be empty or begin with `$`");
        }
        if self.publish_window == 0 || self.lane_window == 0 {
            return refuse("publish_window", "windows must be at least 1");
        }
        let keep_alive = self.keep_alive.0;
        if keep_alive < Duration::from_secs(1) || keep_alive > Duration::from_secs(3_600) {
            return refuse("keep_alive", "it must be from 1s to 1h");
        }
        if self.session_expiry.is_some_and(|expiry| expiry.0 < Duration::from_secs(60)) {
            return refuse("session_expiry", "below 1m groups would lose what waits for them");
        }
        for (setting, time) in [
            ("connect_timeout", self.connect_timeout),
            ("publish_timeout", self.publish_timeout),
            ("handover_timeout", self.handover_timeout),
        ] {
            if time.0.is_zero() {
                return refuse(setting, "it must be more than 0");
            }
        }
        if self.message_max.0 < 1_024 || self.message_max.0 > 200 * 1024 * 1024 {
            return refuse("message_max", "it must be from 1KiB to 200MiB");
        }
        if self.certificate_file.is_some() != self.key_file.is_some() {
            return refuse("certificate_file", "it goes with `key_file`; set both or none");
        }
        let names_files = self.ca_file.is_some() || self.certificate_file.is_some();
        if names_files && !address.tls {
            return refuse("url", "certificates are for TLS; write mqtts:// or leave them out");
        }
        Ok(address)
    }

    fn address(&self) -> Result<Address, SettingsError> {
        let wrong = |problem: &str| SettingsError { setting: "url", problem: problem.to_owned() };
        let (tls, rest) = match self.url.split_once("://") {
            Some(("mqtt" | "tcp", rest)) => (false, rest),
            Some(("mqtts" | "ssl", rest)) => (true, rest),
            _ => return Err(wrong("it must begin with mqtt:// or mqtts://")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, rest),
        };
        if place.contains(['/', '?', '#']) {
            return Err(wrong("it has no path, query or fragment"));
        }
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                let port = port.parse().ok().filter(|port| *port != 0);
                (host, port.ok_or_else(|| wrong("its port must be from 1 to 65535"))?)
            }
            _ => (place, if tls { 8_883 } else { 1_883 }),
        };
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return Err(wrong("it names no host"));
        }
        let login = self.login(login)?;
        Ok(Address { host: host.to_owned(), port, tls, login })
    }

    /// User and password, from the URL or beside it.
    fn login(&self, login: Option<&str>) -> Result<Option<(String, Secret)>, SettingsError> {
        let Some(login) = login else {
            return match (&self.user, &self.password) {
                (Some(user), password) => {
                    let password = password.clone().unwrap_or_else(|| Secret::new(String::new()));
                    Ok(Some((user.clone(), password)))
                }
                (None, None) => Ok(None),
                (None, Some(_)) => Err(SettingsError {
                    setting: "password",
                    problem: "it goes with `user`".to_owned(),
                }),
            };
        };
        if self.user.is_some() || self.password.is_some() {
            let problem = "the URL names a user as well; say it once".to_owned();
            return Err(SettingsError { setting: "user", problem });
        }
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        match (unescape(user), unescape(password)) {
            (Some(user), Some(password)) => Ok(Some((user, Secret::new(password)))),
            _ => Err(SettingsError {
                setting: "url",
                problem: "its user and password must be percent-encoded UTF-8".to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_say_where_and_who() {
        let cases = [
            ("mqtt://localhost", "localhost", 1_883, false, None),
            ("mqtts://localhost/", "localhost", 8_883, true, None),
            ("mqtt://127.0.0.1:21883", "127.0.0.1", 21_883, false, None),
            ("mqtt://[::1]:1884", "::1", 1_884, false, None),
            ("mqtt://[::1]", "::1", 1_883, false, None),
            ("mqtts://me:a%40b@host:1", "host", 1, true, Some(("me", "a@b"))),
        ];
        for (url, host, port, tls, login) in cases {
            let address = Settings::at(url).check().expect(url);
            let found = address.login.as_ref().map(|(user, word)| (&**user, &**word.expose()));
            assert_eq!((&*address.host, address.port, address.tls), (host, port, tls), "{url}");
            assert_eq!(found, login, "{url}");
        }
    }

    #[test]
    fn nobody_is_shown_the_password() {
        let mut settings = Settings::at("mqtts://me:hunter2@host:1");
        settings.password = Some(Secret::new("hunter2".into()));
        let shown = serde_json::to_string(&settings).expect("it is written");
        for text in [shown, format!("{settings:?}"), format!("{:?}", settings.address())] {
            assert!(!text.contains("hunter2"), "{text}");
        }
        assert_eq!(without_password("mqtts://me:hunter2@host:1"), "mqtts://me@host:1");
        assert_eq!(without_password("mqtt://host"), "mqtt://host");
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let with = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.check().expect_err("it cannot be").setting
        };
        assert_eq!(with(|s| s.url = "http://x".into()), "url");
        assert_eq!(with(|s| s.url = "mqtt://x:0".into()), "url");
        assert_eq!(with(|s| s.url = "mqtt://x/path".into()), "url");
        assert_eq!(with(|s| s.ca_file = Some("ca.pem".into())), "url");
        assert_eq!(with(|s| s.lanes = 3), "lanes");
        assert_eq!(with(|s| s.lanes = 32), "lanes");
        assert_eq!(with(|s| s.prefix.clear()), "prefix");
        assert_eq!(with(|s| s.lane_window = 0), "publish_window");
        assert_eq!(with(|s| s.keep_alive = HumanDuration(Duration::ZERO)), "keep_alive");
        assert_eq!(
            with(|s| s.session_expiry = Some(HumanDuration::from_secs(5))),
            "session_expiry"
        );
        assert_eq!(with(|s| s.message_max = ByteSize(10)), "message_max");
        assert_eq!(with(|s| s.key_file = Some("key.pem".into())), "certificate_file");
        assert_eq!(with(|s| s.password = Some(Secret::new("x".into()))), "password");
    }
}
