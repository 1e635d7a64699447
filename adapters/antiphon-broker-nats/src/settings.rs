//! What can be chosen about a NATS server, and whether it makes sense.

use std::path::PathBuf;
use std::time::Duration;

use antiphon_config::{HumanDuration, Mistake, Secret, TlsFiles, without_login};
use serde::{Deserialize, Serialize};

/// How the broker is reached and what it makes of topics.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `nats://[user:password@]host[:port]`, or `tls://…`; several servers of one cluster with commas
    /// in between. A user and password in the URL count more than the fields.
    pub url: String,
    /// The certificates that the server's certificate must be signed with, as a PEM file. Those of
    /// the system unless set.
    pub ca_file: Option<PathBuf>,
    /// This client's certificate, as a PEM file. Goes with [`Self::key_file`].
    pub certificate_file: Option<PathBuf>,
    /// The key of this client's certificate, as a PEM file.
    pub key_file: Option<PathBuf>,
    /// The user.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// A token, for servers that ask for one instead of a user.
    pub token: Option<Secret>,
    /// A `.creds` file with a JWT and its key.
    pub credentials_file: Option<PathBuf>,
    /// How long connecting may take.
    pub connect_timeout: HumanDuration,
    /// How long the server may take to confirm a message; then it is unknown whether it arrived.
    pub publish_timeout: HumanDuration,
    /// How many messages may wait for their confirmation at a time.
    pub publish_window: usize,
    /// How many servers keep each message.
    pub replicas: usize,
    /// How long messages are kept.
    pub max_age: HumanDuration,
    /// For how long the server recognises a message that it has already by its id.
    pub duplicate_window: HumanDuration,
    /// How long the server waits for a sign of life of whoever holds a message.
    pub ack_wait: HumanDuration,
    /// How long a member of an ordered group owns its lanes without a sign of life.
    pub lease: HumanDuration,
    /// How long a member may take to finish with lanes that others take over.
    pub handover_timeout: HumanDuration,
    /// How many messages of each lane and topic a member of an ordered group reads ahead.
    pub read_ahead: usize,
    /// Whether the server runs with `sync_interval: always`, which it does not tell by itself. Without
    /// it, what was confirmed in the last seconds or minutes is lost when the power fails.
    pub sync_always: bool,
    /// What the names of the buckets begin with in which groups keep who reads what.
    pub bucket: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            ca_file: None,
            certificate_file: None,
            key_file: None,
            user: None,
            password: None,
            token: None,
            credentials_file: None,
            connect_timeout: HumanDuration::from_secs(5),
            publish_timeout: HumanDuration::from_secs(10),
            publish_window: 4_096,
            replicas: 1,
            max_age: HumanDuration::from_secs(7 * 86_400),
            duplicate_window: HumanDuration::from_secs(120),
            ack_wait: HumanDuration::from_secs(10),
            lease: HumanDuration::from_secs(6),
            handover_timeout: HumanDuration::from_secs(30),
            read_ahead: 256,
            sync_always: false,
            bucket: "antiphon".to_owned(),
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

    /// What of them does not make sense, whatever the server can do.
    pub(crate) fn check(&self) -> Result<(), Mistake> {
        let wrong = |setting: &str, problem: &str| Err(Mistake::new(setting, problem));
        for url in self.urls() {
            let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
            if !matches!(scheme, "nats" | "tls") {
                let shown = without_login(url);
                return wrong("url", &format!("`{shown}` does not begin with nats:// or tls://"));
            }
        }
        // A server that is written as nats:// may ask for TLS all the same.
        self.tls().check(None)?;
        let ways = [self.user.is_some(), self.token.is_some(), self.credentials_file.is_some()];
        if ways.into_iter().filter(|way| *way).count() > 1 {
            let last = if self.credentials_file.is_some() { "credentials_file" } else { "token" };
            return wrong(last, "only one of user, token and credentials_file can be set");
        }
        if self.password.is_some() && self.user.is_none() {
            return wrong("password", "password needs user");
        }
        if !matches!(self.replicas, 1 | 3 | 5) {
            return wrong("replicas", &format!("{} is not 1, 3 or 5", self.replicas));
        }
        for (name, value) in
            [("publish_window", self.publish_window), ("read_ahead", self.read_ahead)]
        {
            if value == 0 {
                return wrong(name, "it must be at least 1");
            }
        }
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if self.bucket.is_empty() || !self.bucket.chars().all(valid) {
            let problem = format!("`{}` must be letters, digits, - and _", self.bucket);
            return wrong("bucket", &problem);
        }
        self.check_times()
    }

    fn check_times(&self) -> Result<(), Mistake> {
        const SECOND: Duration = Duration::from_secs(1);
        for (name, value, least) in [
            ("connect_timeout", self.connect_timeout, SECOND / 10),
            ("publish_timeout", self.publish_timeout, SECOND / 10),
            ("max_age", self.max_age, 60 * SECOND),
            ("duplicate_window", self.duplicate_window, SECOND),
            ("ack_wait", self.ack_wait, SECOND),
            ("lease", self.lease, SECOND),
        ] {
            value.at_least(name, least)?;
        }
        if self.duplicate_window > self.max_age {
            let problem = "it cannot be longer than max_age";
            return Err(Mistake::new("duplicate_window", problem));
        }
        Ok(())
    }

    /// The servers, one by one.
    pub(crate) fn urls(&self) -> impl Iterator<Item = &str> {
        self.url.split(',').map(str::trim)
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
        let clustered = Settings::new("tls://a:secret@one:4222, tls://two");
        assert_eq!(clustered.check(), Ok(()));
        let bad = problem(|s| s.url = "http://user:secret@here".into());
        assert!(bad.contains("http://here") && !bad.contains("secret"), "{bad}");
        assert!(problem(|s| s.replicas = 2).contains("replicas"));
        assert!(problem(|s| s.key_file = Some("k".into())).contains("go together"));
        assert!(problem(|s| s.lease = HumanDuration::from_millis(1)).contains("lease: 1ms"));
        assert!(problem(|s| s.bucket = "a.b".into()).contains("bucket"));
        assert!(problem(|s| s.password = Some(Secret::new("x".into()))).contains("user"));
        assert!(problem(|s| s.max_age = HumanDuration::from_secs(60)).contains("duplicate_window"));
    }
}
