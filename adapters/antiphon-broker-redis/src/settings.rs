//! What can be chosen about a Redis server, and whether it makes sense.

use std::path::PathBuf;
use std::time::Duration;

use antiphon_config::{ByteSize, HumanDuration, Secret};
use serde::{Deserialize, Serialize};

/// How the broker is reached and what it makes of topics.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `redis://[user:password@]host[:port][/database]`, or `rediss://…` for TLS. A user and password
    /// in the URL count more than the fields.
    pub url: String,
    /// The certificates that the server's certificate must be signed with, as a PEM file. Those of
    /// the system unless set.
    pub ca_file: Option<PathBuf>,
    /// This client's certificate, as a PEM file. Goes with [`Self::key_file`].
    pub certificate_file: Option<PathBuf>,
    /// The key of this client's certificate, as a PEM file.
    pub key_file: Option<PathBuf>,
    /// The user; `default` unless set.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// How long connecting may take.
    pub connect_timeout: HumanDuration,
    /// How long the server may take to confirm a message; then it is unknown whether it arrived.
    pub publish_timeout: HumanDuration,
    /// How many messages may wait for their confirmation at a time.
    pub publish_window: usize,
    /// How many replicas must have a message before it is confirmed.
    pub replicas: usize,
    /// The largest message that is taken, attributes included.
    pub message_max: ByteSize,
    /// How long messages are kept at least, also when every group has handled them. What a group has
    /// not handled is never removed.
    pub retention: HumanDuration,
    /// How long a member is believed to be alive without a sign of life.
    pub lease: HumanDuration,
    /// How long a member may take to finish with lanes that others take over.
    pub handover_timeout: HumanDuration,
    /// How many messages a member of an ordered group reads ahead.
    pub read_ahead: usize,
    /// What every key begins with.
    pub prefix: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379".to_owned(),
            ca_file: None,
            certificate_file: None,
            key_file: None,
            user: None,
            password: None,
            connect_timeout: HumanDuration::from_secs(5),
            publish_timeout: HumanDuration::from_secs(10),
            publish_window: 4_096,
            replicas: 0,
            message_max: ByteSize::mib(4),
            retention: HumanDuration::from_secs(3_600),
            lease: HumanDuration::from_secs(6),
            handover_timeout: HumanDuration::from_secs(30),
            read_ahead: 2_048,
            prefix: "antiphon".to_owned(),
        }
    }
}

impl Settings {
    /// The defaults with this URL.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// What of them does not make sense, whatever the server can do.
    pub(crate) fn check(&self) -> Result<(), String> {
        let shown = without_password(&self.url);
        if !self.is_tls() && !self.url.starts_with("redis://") {
            return Err(format!("url: `{shown}` does not begin with redis:// or rediss://"));
        }
        if self.certificate_file.is_some() != self.key_file.is_some() {
            return Err("certificate_file and key_file go together".into());
        }
        if !self.is_tls() && (self.ca_file.is_some() || self.key_file.is_some()) {
            return Err(format!("certificates need TLS, and `{shown}` is not rediss://"));
        }
        if self.user.is_some() && self.password.is_none() {
            return Err("user needs password".into());
        }
        if self.publish_window == 0 || self.read_ahead == 0 || self.message_max.0 == 0 {
            return Err("publish_window, read_ahead and message_max must be at least 1".into());
        }
        if self.message_max > ByteSize::mib(256) {
            return Err("message_max: Redis is not made for more than 256MiB".into());
        }
        if self.prefix.is_empty() || self.prefix.chars().any(|c| c.is_control() || c == ' ') {
            return Err(format!("prefix: `{}` must be a word", self.prefix));
        }
        const SECOND: Duration = Duration::from_secs(1);
        for (name, value, least) in [
            ("connect_timeout", self.connect_timeout, SECOND / 10),
            ("publish_timeout", self.publish_timeout, SECOND / 10),
            ("lease", self.lease, SECOND),
        ] {
            if value.0 < least {
                return Err(format!("{name}: {value} is less than {}", HumanDuration(least)));
            }
        }
        Ok(())
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.url.starts_with("rediss://")
    }
}

/// A URL for people: nobody shall read the password in a log.
pub(crate) fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(change: impl FnOnce(&mut Settings)) -> String {
        let mut settings = Settings::default();
        change(&mut settings);
        settings.check().expect_err("it makes no sense")
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        assert_eq!(Settings::default().check(), Ok(()));
        let bad = problem(|s| s.url = "http://user:secret@here".into());
        assert!(bad.contains("http://here") && !bad.contains("secret"), "{bad}");
        assert!(problem(|s| s.ca_file = Some("ca.pem".into())).contains("rediss://"));
        assert!(problem(|s| s.key_file = Some("k".into())).contains("go together"));
        assert!(problem(|s| s.lease = HumanDuration::from_millis(1)).contains("lease: 1ms"));
        assert!(problem(|s| s.user = Some("x".into())).contains("password"));
        assert!(problem(|s| s.prefix = "a b".into()).contains("prefix"));
        assert!(problem(|s| s.publish_window = 0).contains("publish_window"));
    }
}
