//! What can be chosen about the Redis server, and whether it makes sense.

use std::path::PathBuf;
use std::time::Duration;

use antiphon_config::{HumanDuration, Mistake, Secret, TlsFiles, without_login};
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

    /// The files of TLS.
    pub(crate) fn tls(&self) -> TlsFiles<'_> {
        let (certificate, key) = (self.certificate_file.as_ref(), self.key_file.as_ref());
        TlsFiles::new(self.ca_file.as_ref(), certificate, key)
    }

    /// What of them does not make sense.
    pub(crate) fn check(&self) -> Result<(), Mistake> {
        let wrong = |setting: &str, problem: &str| Err(Mistake::new(setting, problem));
        let shown = without_login(&self.url);
        if !self.is_tls() && !self.url.starts_with("redis://") {
            let problem = format!("`{shown}` does not begin with redis:// or rediss://");
            return wrong("url", &problem);
        }
        self.tls().check((!self.is_tls()).then_some((shown.as_str(), "rediss://")))?;
        if self.user.is_some() && self.password.is_none() {
            return wrong("user", "it needs a password");
        }
        if self.prefix.is_empty() || self.prefix.chars().any(|c| c.is_control() || c == ' ') {
            return wrong("prefix", &format!("`{}` must be a word", self.prefix));
        }
        self.connect_timeout.at_least("connect_timeout", Duration::from_millis(100))
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.url.starts_with("rediss://")
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
        let bad = problem(|s| s.url = "http://user:secret@here".into());
        assert!(bad.contains("http://here") && !bad.contains("secret"), "{bad}");
        assert!(problem(|s| s.ca_file = Some("ca.pem".into())).contains("rediss://"));
        assert!(problem(|s| s.key_file = Some("k".into())).contains("go together"));
        assert!(problem(|s| s.user = Some("x".into())).contains("password"));
        assert!(problem(|s| s.prefix = "a b".into()).contains("prefix"));
        let bad = problem(|s| s.connect_timeout = HumanDuration::from_millis(1));
        assert!(bad.contains("connect_timeout: 1ms"), "{bad}");
    }
}
