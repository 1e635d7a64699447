//! What can be chosen about etcd, and whether it makes sense.

use std::path::PathBuf;
use std::time::Duration;

use antiphon_config::{HumanDuration, Mistake, Secret, TlsFiles};
use serde::{Deserialize, Serialize};

/// How etcd is reached and what is kept there.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The servers: `http://host:port`, or `https://host:port` for TLS. One is asked at a time; the
    /// next when it is away.
    pub endpoints: Vec<String>,
    /// The certificates that the servers' certificates must be signed with, as a PEM file. Those of
    /// the system unless set.
    pub ca_file: Option<PathBuf>,
    /// This client's certificate, as a PEM file. Goes with [`Self::key_file`].
    pub certificate_file: Option<PathBuf>,
    /// The key of this client's certificate, as a PEM file.
    pub key_file: Option<PathBuf>,
    /// The user, where etcd asks for one.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// How long connecting may take.
    pub connect_timeout: HumanDuration,
    /// How long an answer may take.
    pub request_timeout: HumanDuration,
    /// How long an instance is kept without a sign of life, in whole seconds.
    pub lease: HumanDuration,
    /// What every key begins with.
    pub prefix: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            ca_file: None,
            certificate_file: None,
            key_file: None,
            user: None,
            password: None,
            connect_timeout: HumanDuration::from_secs(2),
            request_timeout: HumanDuration::from_secs(5),
            lease: HumanDuration::from_secs(15),
            prefix: "/antiphon/services".to_owned(),
        }
    }
}

impl Settings {
    /// The defaults with this server.
    #[must_use]
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self { endpoints: vec![endpoint.into()], ..Self::default() }
    }

    /// The files of TLS.
    pub(crate) fn tls(&self) -> TlsFiles<'_> {
        let (certificate, key) = (self.certificate_file.as_ref(), self.key_file.as_ref());
        TlsFiles::new(self.ca_file.as_ref(), certificate, key)
    }

    /// What of them does not make sense, whatever the server can do.
    pub(crate) fn check(&self) -> Result<(), Mistake> {
        if self.user.is_some() != self.password.is_some() {
            return Err(Mistake::new("user", "user and password go together"));
        }
        if self.lease.0 < Duration::from_secs(1) || self.lease.0.subsec_nanos() != 0 {
            let problem = format!("{} is not whole seconds, at least one", self.lease);
            return Err(Mistake::new("lease", problem));
        }
        let least = Duration::from_millis(100);
        self.connect_timeout.at_least("connect_timeout", least)?;
        self.request_timeout.at_least("request_timeout", least)?;
        if self.prefix.is_empty() || self.prefix.ends_with('/') {
            let problem = format!("`{}` is empty or ends with `/`", self.prefix);
            return Err(Mistake::new("prefix", problem));
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
        assert!(problem(|s| s.user = Some("a".into())).contains("go together"));
        assert!(problem(|s| s.lease = HumanDuration::from_millis(1_500)).contains("whole seconds"));
        assert!(problem(|s| s.prefix = "/a/".into()).contains("prefix"));
        assert!(problem(|s| s.request_timeout = HumanDuration::from_secs(0)).contains("100ms"));
    }
}
