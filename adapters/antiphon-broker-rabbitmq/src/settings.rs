//! What can be chosen, and what is wrong with a choice.

use std::path::PathBuf;
use std::time::Duration;

use antiphon_config::{ByteSize, HumanDuration, Secret};
use antiphon_messaging::{Durability, LANES};
use lapin::uri::{AMQPScheme, AMQPUri};
use serde::{Deserialize, Serialize};

/// How a RabbitMQ server is used.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Settings {
    /// `amqp://user:password@host:port/vhost`, or `amqps://…` for TLS; ports 5672 and 5671 unless
    /// given. Without a path the virtual host is `/`.
    pub url: String,
    /// The user, if not in the URL.
    pub user: Option<String>,
    /// The password, if not in the URL.
    pub password: Option<Secret>,
    /// An authority to trust besides those of the system, as a PEM file.
    pub ca_file: Option<PathBuf>,
    /// The certificate of this client, as a PEM file. Goes with `key_file`.
    pub certificate_file: Option<PathBuf>,
    /// The key of `certificate_file`, as a PEM file.
    pub key_file: Option<PathBuf>,
    /// After how long without a sign of life the other side is taken for dead, times two.
    pub heartbeat: HumanDuration,
    /// Into how many queues the messages of an ordered group are divided, so that its members can
    /// share them: 1, 2, 4, 8 or 16. Fixed once an ordered group was declared.
    pub lanes: u32,
    /// How long a connection may take.
    pub connect_timeout: HumanDuration,
    /// How long the server may take to confirm a message.
    pub publish_timeout: HumanDuration,
    /// How many messages may be sent and not confirmed.
    pub publish_window: usize,
    /// How long a member may finish what it holds of lanes that another one takes over.
    pub handover_timeout: HumanDuration,
    /// The largest message, attributes included. The server must take as much
    /// (`max_message_size`).
    pub message_max: ByteSize,
    /// Whether the queues are kept by a majority of several nodes. Only whoever runs the servers
    /// knows.
    pub replicated: bool,
    /// What becomes of a message for a topic that no group reads.
    pub unread: Unread,
    /// After how long the server forgets a group that nobody reads, and its messages; never unless
    /// given.
    pub group_expiry: Option<HumanDuration>,
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

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "amqp://127.0.0.1:5672".to_owned(),
            user: None,
            password: None,
            ca_file: None,
            certificate_file: None,
            key_file: None,
            heartbeat: HumanDuration(Duration::from_secs(10)),
            lanes: 4,
            connect_timeout: HumanDuration(Duration::from_secs(5)),
            publish_timeout: HumanDuration(Duration::from_secs(10)),
            publish_window: 500,
            handover_timeout: HumanDuration(Duration::from_secs(60)),
            message_max: ByteSize(1024 * 1024),
            replicated: false,
            unread: Unread::Refuse,
            group_expiry: None,
        }
    }
}

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{setting}: {problem}", if *setting == "url" { "broker." } else { "broker.rabbitmq." })]
pub struct SettingsError {
    /// Which one.
    pub setting: &'static str,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

impl Settings {
    /// The defaults at this URL.
    #[must_use]
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// How safe a confirmed message is.
    pub(crate) fn durability(&self) -> Durability {
        if self.replicated { Durability::Quorum } else { Durability::Disk }
    }

    /// Looks at what can be judged without a server; yields where that is.
    pub(crate) fn check(&self) -> Result<AMQPUri, SettingsError> {
        let refuse =
            |setting, problem: &str| Err(SettingsError { setting, problem: problem.to_owned() });
        let uri = self.uri()?;
        if self.lanes == 0 || !LANES.is_multiple_of(self.lanes) {
            return refuse("lanes", "it must be 1, 2, 4, 8 or 16");
        }
        if !(1..=10_000).contains(&self.publish_window) {
            return refuse("publish_window", "it must be from 1 to 10000");
        }
        if !(1..=3_600).contains(&self.heartbeat.0.as_secs()) {
            return refuse("heartbeat", "it must be from 1s to 1h");
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
        if !(1_024..=128 * 1024 * 1024).contains(&self.message_max.0) {
            return refuse("message_max", "it must be from 1KiB to 128MiB");
        }
        if self.group_expiry.is_some_and(|expiry| expiry.0 < Duration::from_secs(10)) {
            return refuse("group_expiry", "below 10s groups would lose what waits for them");
        }
        if self.certificate_file.is_some() != self.key_file.is_some() {
            return refuse("certificate_file", "it goes with `key_file`; set both or none");
        }
        let names_files = self.ca_file.is_some() || self.certificate_file.is_some();
        if names_files && uri.scheme == AMQPScheme::AMQP {
            return refuse("url", "certificates are for TLS; write amqps:// or leave them out");
        }
        Ok(uri)
    }

    fn uri(&self) -> Result<AMQPUri, SettingsError> {
        let wrong = |problem: String| SettingsError { setting: "url", problem };
        let Some((_, rest)) = self.url.split_once("://") else {
            return Err(wrong("it must begin with amqp:// or amqps://".to_owned()));
        };
        let place = rest.split(['/', '?']).next().unwrap_or_default();
        let (login, place) = place.rsplit_once('@').map_or((None, place), |(l, p)| (Some(l), p));
        if place.is_empty() || place.starts_with(':') {
            return Err(wrong("it names no host".to_owned()));
        }
        if self.url.contains('?') {
            return Err(wrong("it has no query; the other settings say it".to_owned()));
        }
        let mut uri: AMQPUri = self.url.parse().map_err(wrong)?;
        if uri.vhost.is_empty() {
            // What everybody means by a path that is only a slash.
            "/".clone_into(&mut uri.vhost);
        }
        if let Some((host, _)) = place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            host.clone_into(&mut uri.authority.host);
        }
        match (login, &self.user, &self.password) {
            (Some(_), None, None) | (None, None, None) => {}
            (None, Some(user), password) => {
                user.clone_into(&mut uri.authority.userinfo.username);
                let word = password.as_ref().map(|word| word.expose().clone());
                uri.authority.userinfo.password = word.unwrap_or_default();
            }
            (None, None, Some(_)) => {
                return Err(SettingsError {
                    setting: "password",
                    problem: "it goes with `user`".to_owned(),
                });
            }
            (Some(_), ..) => {
                let problem = "the URL names a user as well; say it once".to_owned();
                return Err(SettingsError { setting: "user", problem });
            }
        }
        uri.query.heartbeat = Some(u16::try_from(self.heartbeat.0.as_secs()).unwrap_or(10));
        Ok(uri)
    }
}

/// Where this is, without user and password.
pub(crate) fn address(uri: &AMQPUri) -> String {
    format!("{}:{}", uri.authority.host, uri.authority.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_say_where_and_who() {
        let cases = [
            ("amqp://localhost", "localhost", 5_672, "/", "guest", "guest"),
            ("amqps://localhost/", "localhost", 5_671, "/", "guest", "guest"),
            ("amqp://127.0.0.1:25673/%2f", "127.0.0.1", 25_673, "/", "guest", "guest"),
            ("amqp://me:a%40b@host/shop", "host", 5_672, "shop", "me", "a@b"),
            ("amqp://[::1]:7/shop", "::1", 7, "shop", "guest", "guest"),
        ];
        for (url, host, port, vhost, user, password) in cases {
            let uri = Settings::at(url).check().expect(url);
            let login = &uri.authority.userinfo;
            assert_eq!((&*uri.authority.host, uri.authority.port), (host, port), "{url}");
            assert_eq!(uri.vhost, vhost, "{url}");
            assert_eq!((&*login.username, &*login.password), (user, password), "{url}");
            assert_eq!(uri.query.heartbeat, Some(10));
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let with = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.check().expect_err("it cannot be").setting
        };
        assert_eq!(with(|s| s.url = "http://x".into()), "url");
        assert_eq!(with(|s| s.url = "localhost".into()), "url");
        assert_eq!(with(|s| s.url = "amqp://".into()), "url");
        assert_eq!(with(|s| s.url = "amqp://:5672".into()), "url");
        assert_eq!(with(|s| s.url = "amqp://x?heartbeat=3".into()), "url");
        assert_eq!(with(|s| s.ca_file = Some("ca.pem".into())), "url");
        assert_eq!(with(|s| s.lanes = 3), "lanes");
        assert_eq!(with(|s| s.lanes = 0), "lanes");
        assert_eq!(with(|s| s.publish_window = 0), "publish_window");
        assert_eq!(with(|s| s.heartbeat = HumanDuration(Duration::ZERO)), "heartbeat");
        assert_eq!(with(|s| s.publish_timeout = HumanDuration(Duration::ZERO)), "publish_timeout");
        assert_eq!(with(|s| s.message_max = ByteSize(10)), "message_max");
        assert_eq!(with(|s| s.group_expiry = Some(HumanDuration::from_secs(1))), "group_expiry");
        assert_eq!(with(|s| s.key_file = Some("key.pem".into())), "certificate_file");
        assert_eq!(with(|s| s.password = Some(Secret::new("x".into()))), "password");
        let twice = |s: &mut Settings| {
            s.url = "amqp://me:too@x".into();
            s.user = Some("you".into());
        };
        assert_eq!(with(twice), "user");
    }
}
