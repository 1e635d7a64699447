//! What can be chosen about Consul, and whether it makes sense.

use std::path::PathBuf;
use std::time::Duration;

use antiphon_config::{HumanDuration, Mistake, Secret, TlsFiles};
use serde::{Deserialize, Serialize};

/// How the agent is reached and what is kept there.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The agent of this machine: `http://host:port`, or `https://host:port` for TLS.
    pub url: String,
    /// The certificates that the agent's certificate must be signed with, as a PEM file. Those of the
    /// system unless set.
    pub ca_file: Option<PathBuf>,
    /// This client's certificate, as a PEM file. Goes with [`Self::key_file`].
    pub certificate_file: Option<PathBuf>,
    /// The key of this client's certificate, as a PEM file.
    pub key_file: Option<PathBuf>,
    /// The token, where Consul asks for one: `service:write` for what is registered, `service:read`
    /// and `node:read` for what is watched.
    pub token: Option<Secret>,
    /// The datacenter whose instances are watched; the agent's own without it.
    pub datacenter: Option<String>,
    /// How long connecting may take.
    pub connect_timeout: HumanDuration,
    /// How long an answer may take.
    pub request_timeout: HumanDuration,
    /// How long a query waits for a change. A query that is not answered by then is how a lost
    /// connection is noticed.
    pub wait: HumanDuration,
    /// How long an instance is kept without a sign of life: the time of its check.
    pub lease: HumanDuration,
    /// How long an instance whose check has failed stays listed as critical before the agent forgets
    /// it; Consul takes no less than a minute.
    pub deregister_after: HumanDuration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:8500".to_owned(),
            ca_file: None,
            certificate_file: None,
            key_file: None,
            token: None,
            datacenter: None,
            connect_timeout: HumanDuration::from_secs(2),
            request_timeout: HumanDuration::from_secs(5),
            wait: HumanDuration::from_secs(30),
            lease: HumanDuration::from_secs(15),
            deregister_after: HumanDuration::from_secs(60),
        }
    }
}

impl Settings {
    /// The defaults with this agent.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// The files of TLS.
    pub(crate) fn tls(&self) -> TlsFiles<'_> {
        let (certificate, key) = (self.certificate_file.as_ref(), self.key_file.as_ref());
        TlsFiles::new(self.ca_file.as_ref(), certificate, key)
    }

    /// What of them does not make sense, whatever the agent can do.
    pub(crate) fn check(&self) -> Result<(), Mistake> {
        let second = Duration::from_secs(1);
        for (name, value, least) in [
            ("connect_timeout", self.connect_timeout, second / 10),
            ("request_timeout", self.request_timeout, second / 10),
            ("wait", self.wait, second),
            ("lease", self.lease, second),
            ("deregister_after", self.deregister_after, 60 * second),
        ] {
            value.at_least(name, least)?;
        }
        if self.wait.0 > 600 * second {
            return Err(Mistake::new("wait", "Consul waits for ten minutes at most"));
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
        assert!(problem(|s| s.lease = HumanDuration::from_millis(10)).contains("lease: 10ms"));
        assert!(problem(|s| s.wait = HumanDuration::from_secs(601)).contains("ten minutes"));
        let soon = HumanDuration::from_secs(30);
        assert!(problem(|s| s.deregister_after = soon).contains("deregister_after"));
    }
}
