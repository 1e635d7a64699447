//! What can be chosen about the Redis server, and whether it makes sense.

use std::path::PathBuf;
use std::time::Duration;

use antiphon_config::{HumanDuration, Mistake, Secret, TlsFiles};
use antiphon_redis_client::Server;
use serde::{Deserialize, Serialize};

/// How the server is reached and what keys are called.
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
    /// What every key begins with. Systems that share a server have different ones.
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

    /// What of them does not make sense.
    pub(crate) fn check(&self) -> Result<(), Mistake> {
        self.server().check()?;
        self.connect_timeout.at_least("connect_timeout", Duration::from_millis(100))
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
        Settings::default().check().expect("it makes sense");
        assert!(problem(|s| s.ca_file = Some("ca.pem".into())).contains("rediss://"));
        assert!(problem(|s| s.key_file = Some("k".into())).contains("go together"));
        assert!(problem(|s| s.user = Some("x".into())).contains("password"));
        assert!(problem(|s| s.prefix = "a b".into()).contains("prefix"));
        let bad = problem(|s| s.connect_timeout = HumanDuration::from_millis(1));
        assert!(bad.contains("connect_timeout: 1ms"), "{bad}");
    }
}
