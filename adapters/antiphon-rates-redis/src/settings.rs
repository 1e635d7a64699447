//! What can be chosen about the Redis server, and whether it makes sense.

use std::path::PathBuf;
use std::time::Duration;

use antiphon_config::{HumanDuration, Secret};
use serde::{Deserialize, Serialize};

use crate::error::StartError;

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

    /// What of them does not make sense.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        let bad = |text: String| Err(StartError::Settings(text));
        let shown = self.shown_url();
        if !self.is_tls() && !self.url.starts_with("redis://") {
            return bad(format!("url: `{shown}` does not begin with redis:// or rediss://"));
        }
        if self.certificate_file.is_some() != self.key_file.is_some() {
            return bad("certificate_file and key_file go together".into());
        }
        if !self.is_tls() && (self.ca_file.is_some() || self.key_file.is_some()) {
            return bad(format!("certificates need TLS, and `{shown}` is not rediss://"));
        }
        if self.user.is_some() && self.password.is_none() {
            return bad("user needs password".into());
        }
        if self.prefix.is_empty() || self.prefix.chars().any(|c| c.is_control() || c == ' ') {
            return bad(format!("prefix: `{}` must be a word", self.prefix));
        }
        let least = Duration::from_millis(100);
        if self.connect_timeout.0 < least {
            let (given, least) = (self.connect_timeout, HumanDuration(least));
            return bad(format!("connect_timeout: {given} is less than {least}"));
        }
        Ok(())
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.url.starts_with("rediss://")
    }

    /// The URL for people: nobody shall read the password in a log.
    pub(crate) fn shown_url(&self) -> String {
        match (self.url.split_once("://"), self.url.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
            _ => self.url.clone(),
        }
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
