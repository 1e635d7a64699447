//! What can be chosen about a Redis server, and whether it makes sense.

use std::path::PathBuf;
use std::time::Duration;

use antiphon_config::{ByteSize, HumanDuration, Mistake, Secret, TlsFiles};
use antiphon_redis_client::Server;
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

    /// How the server is reached.
    pub(crate) fn server(&self) -> Server<'_> {
        let (certificate, key) = (self.certificate_file.as_ref(), self.key_file.as_ref());
        Server {
            url: &self.url,
            user: self.user.as_deref(),
            password: self.password.as_ref(),
            tls: TlsFiles::new(self.ca_file.as_ref(), certificate, key),
            prefix: &self.prefix,
        }
    }

    /// What of them does not make sense, whatever the server can do.
    pub(crate) fn check(&self) -> Result<(), Mistake> {
        let wrong = |setting: &str, problem: &str| Err(Mistake::new(setting, problem));
        self.server().check()?;
        for (name, value) in [
            ("publish_window", self.publish_window),
            ("read_ahead", self.read_ahead),
            ("message_max", self.message_max.0),
        ] {
            if value == 0 {
                return wrong(name, "it must be at least 1");
            }
        }
        if self.message_max > ByteSize::mib(256) {
            return wrong("message_max", "Redis is not made for more than 256MiB");
        }
        const SECOND: Duration = Duration::from_secs(1);
        for (name, value, least) in [
            ("connect_timeout", self.connect_timeout, SECOND / 10),
            ("publish_timeout", self.publish_timeout, SECOND / 10),
            ("lease", self.lease, SECOND),
        ] {
            value.at_least(name, least)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(change: impl FnOnce(&mut Settings)) -> String {
        let mut settings = Settings::default();
        change(&mut settings);
        settings.check().expect_err("it makes no sense").to_string()
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        assert_eq!(Settings::default().check(), Ok(()));
        assert!(problem(|s| s.ca_file = Some("ca.pem".into())).contains("rediss://"));
        assert!(problem(|s| s.key_file = Some("k".into())).contains("go together"));
        assert!(problem(|s| s.lease = HumanDuration::from_millis(1)).contains("lease: 1ms"));
        assert!(problem(|s| s.user = Some("x".into())).contains("password"));
        assert!(problem(|s| s.prefix = "a b".into()).contains("prefix"));
        assert!(problem(|s| s.publish_window = 0).contains("publish_window"));
    }
}
