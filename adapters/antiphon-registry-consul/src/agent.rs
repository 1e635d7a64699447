//! Questions to an agent, and what its refusals mean.

use std::sync::Arc;
use std::time::Duration;

use antiphon_config::Mistake;
use antiphon_discovery::RegistryError;
use antiphon_registry_http::{Answer, HttpClient, Question};
use http::{HeaderValue, Method, StatusCode};

use crate::wire::{self, Healthy, OWNER, Register};
use crate::{Settings, index, names};

/// The agent.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    http: HttpClient,
    settings: Arc<Settings>,
    token: Option<HeaderValue>,
}

impl Agent {
    pub(crate) fn new(settings: Settings) -> Result<Self, Mistake> {
        settings.check()?;
        let urls = [settings.url.clone()];
        let http = HttpClient::new("url", &urls, &settings.tls(), settings.connect_timeout.0)?;
        let token = match &settings.token {
            Some(token) => {
                let mut value = HeaderValue::from_str(token.expose())
                    .map_err(|_| Mistake::new("token", "it has characters that no token has"))?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        Ok(Self { http, settings: Arc::new(settings), token })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The instances whose checks pass, when the index is past `asked`, or the time to wait is over;
    /// and the index to ask for next.
    pub(crate) async fn healthy(
        &self,
        service: &str,
        asked: u64,
    ) -> Result<(Vec<Healthy>, u64), RegistryError> {
        let wait = self.settings.wait.0;
        let mut path = format!(
            "/v1/health/service/{}?passing=true&index={asked}&wait={}ms",
            names::part(service),
            wait.as_millis()
        );
        if let Some(datacenter) = &self.settings.datacenter {
            path.push_str("&dc=");
            path.push_str(&names::part(datacenter));
        }
        // The agent adds up to a sixteenth, so that not all come back at once.
        let limit = if asked == 0 { Duration::ZERO } else { wait + wait / 16 };
        let limit = limit + self.settings.request_timeout.0;
        let answer = self.ask(Method::GET, path, String::new(), limit).await?;
        if answer.status != StatusCode::OK {
            return Err(refused("the instances of a service", &answer));
        }
        let index = answer.headers.get("x-consul-index").and_then(|value| value.to_str().ok());
        let index = index.and_then(|text| text.parse().ok()).unwrap_or(0);
        let instances: Vec<Healthy> = read(&answer)?;
        // Whatever a token may not see is left out, and the status is 200 all the same.
        let filtered = answer.headers.get("x-consul-results-filtered-by-acls");
        if instances.is_empty() && filtered.is_some_and(|value| value == "true") {
            return Err(RegistryError::invalid(format!(
                "Consul tells nothing of `{service}` to this token: give it `service:read` and \
                 `node:read`"
            )));
        }
        Ok((instances, index::next(asked, index)))
    }

    pub(crate) async fn register(&self, register: &Register) -> Result<(), RegistryError> {
        let body = serde_json::to_string(register)
            .map_err(|error| RegistryError::refused("an instance cannot be written", error))?;
        // Checks that are not said any more are to go.
        let path = "/v1/agent/service/register?replace-existing-checks=true".to_owned();
        let limit = self.settings.request_timeout.0;
        let answer = self.ask(Method::PUT, path, body, limit).await?;
        expect_ok("registering an instance", &answer)
    }

    /// Renews the check of an instance, which is lost when the agent does not know it.
    pub(crate) async fn pass(&self, id: &str, limit: Duration) -> Result<(), RegistryError> {
        let unknown = || RegistryError::lost("the agent does not know the instance any more");
        let path = format!("/v1/agent/check/pass/{}", names::part(&wire::check_id(id)));
        let answer = self.ask(Method::PUT, path, String::new(), limit).await?;
        match answer.status {
            StatusCode::OK => Ok(()),
            StatusCode::NOT_FOUND => Err(unknown()),
            // Agents before 1.11 say it so.
            _ if answer.words().contains("does not have associated TTL")
                || answer.words().contains("Unknown check") =>
            {
                Err(unknown())
            }
            _ => Err(refused("renewing a check", &answer)),
        }
    }

    /// Who wrote what is registered under this id.
    pub(crate) async fn owner(&self, id: &str) -> Result<Option<String>, RegistryError> {
        let path = format!("/v1/agent/service/{}", names::part(id));
        let limit = self.settings.request_timeout.0;
        let answer = self.ask(Method::GET, path, String::new(), limit).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        expect_ok("an instance of the agent", &answer)?;
        let service: wire::Service = read(&answer)?;
        Ok(service.meta.and_then(|mut meta| meta.remove(OWNER)))
    }

    /// Removes what is registered under this id. Nothing there is fine.
    pub(crate) async fn deregister(&self, id: &str) -> Result<(), RegistryError> {
        let path = format!("/v1/agent/service/deregister/{}", names::part(id));
        let limit = self.settings.request_timeout.0;
        let answer = self.ask(Method::PUT, path, String::new(), limit).await?;
        if answer.status == StatusCode::NOT_FOUND || answer.words().contains("Unknown service") {
            return Ok(());
        }
        expect_ok("removing an instance", &answer)
    }

    async fn ask(
        &self,
        method: Method,
        path: String,
        body: String,
        limit: Duration,
    ) -> Result<Answer, RegistryError> {
        let mut question = Question::new(method, path).with_body(body);
        if let Some(token) = &self.token {
            question.headers.insert("x-consul-token", token.clone());
        }
        self.http.ask(question, limit).await
    }
}

fn read<T: serde::de::DeserializeOwned>(answer: &Answer) -> Result<T, RegistryError> {
    serde_json::from_slice(&answer.body)
        .map_err(|error| RegistryError::refused("what Consul answers is not understood", error))
}

fn expect_ok(what: &str, answer: &Answer) -> Result<(), RegistryError> {
    if answer.status == StatusCode::OK { Ok(()) } else { Err(refused(what, answer)) }
}

/// What a status other than 200 means.
fn refused(what: &str, answer: &Answer) -> RegistryError {
    let (status, words) = (answer.status, answer.words());
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::invalid(format!(
            "Consul refuses {what} ({status} {words}): correct the token, or its rights"
        )),
        StatusCode::BAD_REQUEST => {
            RegistryError::invalid(format!("Consul does not take {what}: {words}"))
        }
        // No leader, no server, too many requests: it passes.
        _ => RegistryError::silent(format!("Consul cannot do {what} now: {status} {words}")),
    }
}
