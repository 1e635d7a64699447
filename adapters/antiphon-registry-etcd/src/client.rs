//! Questions to etcd, and what its refusals mean.

use std::sync::Arc;
use std::time::Duration;

use antiphon_config::Mistake;
use antiphon_discovery::RegistryError;
use antiphon_registry_http::{Answer, HttpClient, Lines, Question};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Settings;
use crate::wire::{self, Bytes, Refusal};

/// Codes of gRPC.
const NOT_FOUND: i64 = 5;
const PERMISSION_DENIED: i64 = 7;
const FAILED_PRECONDITION: i64 = 9;

/// A connection to etcd, shared by all that one registry does.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: HttpClient,
    settings: Arc<Settings>,
    token: Arc<Mutex<Login>>,
}

/// Where etcd asks for users: how far we are.
#[derive(Clone, Debug, Default)]
enum Login {
    #[default]
    Unknown,
    /// It asks nobody.
    Unneeded,
    Token(HeaderValue),
}

/// A lease, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseId(i64);

impl Client {
    pub(crate) fn new(settings: Settings) -> Result<Self, Mistake> {
        settings.check()?;
        let (servers, tls) = (&settings.endpoints, settings.tls());
        let http = HttpClient::new("endpoints", servers, &tls, settings.connect_timeout.0)?;
        Ok(Self { http, settings: Arc::new(settings), token: Arc::default() })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// All keys from `key` up to `end`, and the revision as of which they are.
    pub(crate) async fn range(
        &self,
        key: &str,
        end: &[u8],
    ) -> Result<wire::RangeAnswer, RegistryError> {
        let range = wire::Range::of(key, end);
        self.ask("/v3/kv/range", &range, self.settings.request_timeout.0).await
    }

    /// Whether there are `count` keys from `key` up to `end` of which none was written after a
    /// revision. The server that answers has a leader.
    pub(crate) async fn is_unchanged(
        &self,
        key: &str,
        end: &[u8],
        revision: i64,
        count: usize,
    ) -> Result<bool, RegistryError> {
        let min_mod_revision = (revision + 1).to_string();
        let range = wire::Range { min_mod_revision, keys_only: true, ..wire::Range::of(key, end) };
        let limit = self.settings.request_timeout.0;
        let answer: wire::RangeAnswer = self.ask("/v3/kv/range", &range, limit).await?;
        Ok(answer.kvs.is_empty() && usize::try_from(answer.count) == Ok(count))
    }

    /// Whether there is this key, whatever lease it goes with.
    pub(crate) async fn has(&self, key: &str, limit: Duration) -> Result<bool, RegistryError> {
        let range = wire::Range { keys_only: true, ..wire::Range::of(key, &[]) };
        let answer: wire::RangeAnswer = self.ask("/v3/kv/range", &range, limit).await?;
        Ok(!answer.kvs.is_empty())
    }

    /// What happens to the keys from `key` up to `end`, from a revision on.
    pub(crate) async fn watch(
        &self,
        key: &str,
        end: &[u8],
        revision: i64,
    ) -> Result<Lines, RegistryError> {
        let create_request = wire::WatchCreate {
            key: key.into(),
            range_end: end.into(),
            start_revision: revision.to_string(),
        };
        let mut question = self.question("/v3/watch", &wire::Watch { create_request }).await?;
        // A server that lost its cluster ends the watch instead of being silent.
        let yes = HeaderValue::from_static("true");
        question.headers.insert("grpc-metadata-hasleader", yes);
        self.http.follow(question, self.settings.request_timeout.0).await
    }

    /// A new lease, and how long it is.
    pub(crate) async fn grant(&self, time: Duration) -> Result<(LeaseId, Duration), RegistryError> {
        let grant = wire::Grant { ttl: time.as_secs().to_string() };
        let limit = self.settings.request_timeout.0;
        let answer: wire::LeaseAnswer = self.ask("/v3/lease/grant", &grant, limit).await?;
        let granted = u64::try_from(answer.ttl).unwrap_or(0).max(1);
        Ok((LeaseId(answer.id), Duration::from_secs(granted)))
    }

    /// Renews a lease, which is lost when etcd does not know it.
    pub(crate) async fn renew(&self, lease: LeaseId, limit: Duration) -> Result<(), RegistryError> {
        let id = wire::LeaseId { id: lease.0.to_string() };
        let line: wire::Line<wire::LeaseAnswer> =
            self.ask("/v3/lease/keepalive", &id, limit).await?;
        match line {
            wire::Line { result: Some(answer), .. } if answer.ttl > 0 => Ok(()),
            wire::Line { result: Some(_), .. } => Err(no_lease()),
            wire::Line { error, .. } => {
                let words = error.map(|error| error.to_string()).unwrap_or_default();
                Err(RegistryError::silent(format!("etcd does not renew a lease: {words}")))
            }
        }
    }

    /// Writes a key that goes with a lease, which is lost when etcd does not know it.
    pub(crate) async fn put(
        &self,
        key: &str,
        value: &str,
        lease: LeaseId,
    ) -> Result<(), RegistryError> {
        let put = wire::Put { key: key.into(), value: value.into(), lease: lease.0.to_string() };
        let _: serde_json::Value =
            self.ask("/v3/kv/put", &put, self.settings.request_timeout.0).await?;
        Ok(())
    }

    /// Ends a lease and all keys that go with it. One that is not there is over already.
    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<(), RegistryError> {
        let id = wire::LeaseId { id: lease.0.to_string() };
        let limit = self.settings.request_timeout.0;
        let answer: Result<serde_json::Value, _> = self.ask("/v3/lease/revoke", &id, limit).await;
        match answer {
            Ok(_) | Err(RegistryError::Lost { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks, and once more when the answer is that our token has run out.
    async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<T, RegistryError> {
        let logged_in = !matches!(*self.token.lock(), Login::Unknown);
        let mut answer = self.http.ask(self.question(path, body).await?, limit).await?;
        if logged_in && answer.status != StatusCode::OK && refusal(&answer).wants_login() {
            *self.token.lock() = Login::Unknown;
            answer = self.http.ask(self.question(path, body).await?, limit).await?;
        }
        if answer.status == StatusCode::OK {
            return serde_json::from_slice(&answer.body).map_err(|error| {
                let context = format!("what etcd answers to {path} is not understood");
                RegistryError::refused(context, error)
            });
        }
        Err(self.refused(path, &answer))
    }

    /// What a refusal means; one that another server may not share is no reason to stay.
    fn refused(&self, path: &str, answer: &Answer) -> RegistryError {
        let refusal = refusal(answer);
        let words = refusal.words();
        match refusal.code {
            NOT_FOUND if words.contains("lease") => return no_lease(),
            wire::UNAUTHENTICATED | wire::INVALID_ARGUMENT | PERMISSION_DENIED => {
                // A token may have run out; the next question asks for another.
                *self.token.lock() = Login::Unknown;
                let context = format!(
                    "etcd refuses {path}: {words}; correct user and password, or their rights"
                );
                return RegistryError::invalid(context);
            }
            _ => {}
        }
        self.http.turn(answer);
        RegistryError::silent(format!("etcd cannot do {path} now: {words}"))
    }

    async fn question(&self, path: &str, body: &impl Serialize) -> Result<Question, RegistryError> {
        let body = serde_json::to_string(body)
            .map_err(|error| RegistryError::refused("a question cannot be written", error))?;
        let mut question = Question::new(Method::POST, path).with_body(body);
        if let Some(token) = self.log_in().await? {
            question.headers.insert(AUTHORIZATION, token);
        }
        Ok(question)
    }

    /// The token that etcd gave us, where it asks for users.
    async fn log_in(&self) -> Result<Option<HeaderValue>, RegistryError> {
        let (Some(name), Some(password)) = (&self.settings.user, &self.settings.password) else {
            return Ok(None);
        };
        match &*self.token.lock() {
            Login::Token(token) => return Ok(Some(token.clone())),
            Login::Unneeded => return Ok(None),
            Login::Unknown => {}
        }
        const PATH: &str = "/v3/auth/authenticate";
        let login = wire::Authenticate { name, password: password.expose() };
        let body = serde_json::to_string(&login)
            .map_err(|error| RegistryError::refused("a login cannot be written", error))?;
        let question = Question::new(Method::POST, PATH).with_body(body);
        let answer = self.http.ask(question, self.settings.request_timeout.0).await?;
        let login = if answer.status == StatusCode::OK {
            let answer: wire::AuthenticateAnswer = serde_json::from_slice(&answer.body)
                .map_err(|error| RegistryError::refused("etcd's token is not understood", error))?;
            let mut token = HeaderValue::from_str(&answer.token)
                .map_err(|error| RegistryError::refused("etcd's token is no token", error))?;
            token.set_sensitive(true);
            Login::Token(token)
        } else {
            // Whoever has users set up for later is let in as everybody is.
            if refusal(&answer).code != FAILED_PRECONDITION {
                return Err(self.refused(PATH, &answer));
            }
            Login::Unneeded
        };
        let token = match &login {
            Login::Token(token) => Some(token.clone()),
            Login::Unneeded | Login::Unknown => None,
        };
        *self.token.lock() = login;
        Ok(token)
    }
}

/// What etcd says instead of an answer, be it etcd or somebody before it.
fn refusal(answer: &Answer) -> Refusal {
    serde_json::from_slice(&answer.body).unwrap_or_else(|_| Refusal {
        message: format!("{} {}", answer.status, answer.words()),
        ..Refusal::default()
    })
}

fn no_lease() -> RegistryError {
    RegistryError::lost("etcd does not know the lease any more")
}

/// An instance's key without the part of its service.
pub(crate) fn shown(key: &Bytes) -> String {
    String::from_utf8_lossy(&key.0).into_owned()
}
