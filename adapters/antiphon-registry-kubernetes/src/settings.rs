//! What can be chosen about Kubernetes, and whether it makes sense.

use std::path::PathBuf;
use std::time::Duration;

use antiphon_config::{HumanDuration, Mistake};
use serde::{Deserialize, Serialize};

/// Where Kubernetes puts what a pod needs to talk to its API.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How the API server is reached. The defaults are right inside of a pod.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The API server.
    pub url: String,
    /// The certificates that the server's certificate must be signed with, as a PEM file. It is read
    /// again after each failure.
    pub ca_file: Option<PathBuf>,
    /// The token of the service account. It is read for each question: Kubernetes changes it hourly.
    pub token_file: Option<PathBuf>,
    /// The namespace of services that name none.
    pub namespace: String,
    /// How long connecting may take.
    pub connect_timeout: HumanDuration,
    /// How long an answer may take.
    pub request_timeout: HumanDuration,
    /// How long a watch lasts before another one continues it. A watch on which nothing is said for
    /// that long is how a lost connection is noticed.
    pub watch_timeout: HumanDuration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "https://kubernetes.default.svc".to_owned(),
            ca_file: Some(PathBuf::from(ACCOUNT).join("ca.crt")),
            token_file: Some(PathBuf::from(ACCOUNT).join("token")),
            namespace: "default".to_owned(),
            connect_timeout: HumanDuration::from_secs(2),
            request_timeout: HumanDuration::from_secs(5),
            watch_timeout: HumanDuration::from_secs(60),
        }
    }
}

impl Settings {
    /// What of them does not make sense, whatever the server can do.
    pub(crate) fn check(&self) -> Result<(), Mistake> {
        let least = Duration::from_millis(100);
        self.connect_timeout.at_least("connect_timeout", least)?;
        self.request_timeout.at_least("request_timeout", least)?;
        self.watch_timeout.at_least("watch_timeout", Duration::from_secs(1))?;
        if !is_name(&self.namespace) {
            return Err(Mistake::new("namespace", format!("`{}` is not a name", self.namespace)));
        }
        Ok(())
    }
}

/// Whether Kubernetes could have something of this name (RFC 1123).
pub(crate) fn is_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    (1..=253).contains(&name.len())
        && name.chars().all(inner)
        && !name.starts_with(['-', '.'])
        && !name.ends_with(['-', '.'])
}
