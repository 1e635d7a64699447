//! What can be chosen about ZooKeeper, and whether it makes sense.

use std::time::Duration;

use antiphon_config::{HumanDuration, Mistake, Secret};
use serde::{Deserialize, Serialize};

/// How ZooKeeper is reached and what is kept there.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The servers of one ensemble, as `zookeeper://host:port[,host:port…]`.
    pub url: String,
    /// The user that nodes belong to (scheme `digest`). Without one anybody may change them.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// How long connecting may take.
    pub connect_timeout: HumanDuration,
    /// How long an answer may take.
    pub request_timeout: HumanDuration,
    /// How long an instance is kept without a sign of life: the time of the session. Servers have
    /// bounds for it, by default 2 and 20 of their ticks of 2 s.
    pub lease: HumanDuration,
    /// The node that all others are below.
    pub root: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "zookeeper://127.0.0.1:2181".to_owned(),
            user: None,
            password: None,
            connect_timeout: HumanDuration::from_secs(3),
            request_timeout: HumanDuration::from_secs(5),
            lease: HumanDuration::from_secs(15),
            root: "/antiphon/services".to_owned(),
        }
    }
}

impl Settings {
    /// The defaults with these servers.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// What of them does not make sense, whatever the server can do.
    pub(crate) fn check(&self) -> Result<(), Mistake> {
        let wrong = |setting: &str, problem: &str| Err(Mistake::new(setting, problem));
        let Some(servers) = self.servers() else {
            return wrong("url", "it does not begin with zookeeper://, or no HOST:PORT follows");
        };
        if servers.contains(['@', '/']) {
            return wrong("url", "user and root have settings of their own");
        }
        if self.user.is_some() != self.password.is_some() {
            return wrong("user", "user and password go together");
        }
        if self.user.as_ref().is_some_and(|user| user.is_empty() || user.contains(':')) {
            return wrong("user", "it is empty or has a colon");
        }
        for (name, value, least) in [
            ("connect_timeout", self.connect_timeout, Duration::from_millis(100)),
            ("request_timeout", self.request_timeout, Duration::from_millis(100)),
            ("lease", self.lease, Duration::from_secs(1)),
        ] {
            value.at_least(name, least)?;
        }
        let named = |part: &str| !part.is_empty() && part != "." && part != "..";
        match self.root.strip_prefix('/') {
            Some(parts) if parts.split('/').all(named) => Ok(()),
            _ => {
                let problem = format!("`{}` is not a path such as /antiphon/services", self.root);
                Err(Mistake::new("root", problem))
            }
        }
    }

    /// `host:port[,host:port…]`.
    pub(crate) fn servers(&self) -> Option<&str> {
        let servers = self.url.strip_prefix("zookeeper://")?.trim_end_matches('/');
        (!servers.split(',').any(str::is_empty)).then_some(servers)
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
        assert_eq!(Settings::new("zookeeper://a:1,b:2/").servers(), Some("a:1,b:2"));
        assert!(problem(|s| s.url = "http://a:1".into()).contains("zookeeper://"));
        assert!(problem(|s| s.url = "zookeeper://a:1,".into()).contains("HOST:PORT"));
        assert!(problem(|s| s.url = "zookeeper://u:p@a:1".into()).contains("of their own"));
        assert!(problem(|s| s.user = Some("a".into())).contains("go together"));
        assert!(problem(|s| s.lease = HumanDuration::from_millis(10)).contains("lease: 10ms"));
        for root in ["", "a", "/", "/a/", "/a/../b"] {
            assert!(problem(|s| s.root = root.into()).contains("root"), "{root}");
        }
    }
}
