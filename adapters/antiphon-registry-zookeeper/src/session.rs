//! The one session of a process, made anew when it is over.

use std::sync::Arc;
use std::time::Duration;

use antiphon_discovery::RegistryError;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use zookeeper_client::{Acls, Client, Error};

use crate::Settings;

/// The session that all nodes of a process live in.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    settings: Arc<Settings>,
    /// Held while connecting, so that there is never a second session.
    current: Arc<Mutex<Current>>,
}

/// The session, and how the last try to get one ended.
#[derive(Debug, Default)]
struct Current {
    client: Option<Client>,
    /// When a try failed last, and why.
    failed: Option<(Instant, String)>,
}

impl Session {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings: Arc::new(settings), current: Arc::default() }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The session that there is, or a new one when it is over. It may be without a connection.
    ///
    /// Of all who want a new one at the same time one tries; when that fails, the others do not try
    /// again one after the other, or the last of them would hear of it after minutes.
    ///
    /// # Cancel safety
    /// Safe: a session that was not yielded is closed.
    pub(crate) async fn client(&self) -> Result<Client, RegistryError> {
        let asked = Instant::now();
        let mut current = self.current.lock().await;
        let usable = |client: &&Client| !client.state().is_terminated();
        if let Some(client) = current.client.as_ref().filter(usable) {
            return Ok(client.clone());
        }
        if let Some((_, why)) = current.failed.as_ref().filter(|(at, _)| *at >= asked) {
            return Err(RegistryError::silent(why.clone()));
        }
        current.client = None;
        match self.connect().await {
            Ok(client) => {
                current.failed = None;
                Ok(current.client.insert(client).clone())
            }
            Err(error) => {
                current.failed = Some((Instant::now(), error.chain()));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Client, RegistryError> {
        let mut connector =
            Client::connector().with_session_timeout(self.settings.lease.0).with_fail_eagerly();
        if let (Some(user), Some(password)) = (&self.settings.user, &self.settings.password) {
            let login = format!("{user}:{}", password.expose());
            connector = connector.with_auth("digest", login.as_bytes());
        }
        let servers = self.settings.servers().unwrap_or_default();
        let limit = self.settings.connect_timeout.0;
        match timeout(limit, connector.connect(servers)).await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) => Err(trouble(&format!("no session at {servers}"), error)),
            Err(_) => Err(RegistryError::silent(format!(
                "no session at {servers} within {limit:?}; is a ZooKeeper there?"
            ))),
        }
    }

    /// Who may do what with nodes.
    pub(crate) fn acls(&self) -> Acls<'static> {
        if self.settings.user.is_some() { Acls::creator_all() } else { Acls::anyone_all() }
    }

    /// Waits for an answer, as long as one may take.
    pub(crate) async fn ask<T>(
        &self,
        what: &str,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Result<Result<T, Error>, RegistryError> {
        let limit: Duration = self.settings.request_timeout.0;
        timeout(limit, question).await.map_err(|_| {
            RegistryError::silent(format!("ZooKeeper did not answer {what} within {limit:?}"))
        })
    }
}

/// What an error means for whoever wanted something.
pub(crate) fn trouble(what: &str, error: Error) -> RegistryError {
    match error {
        Error::NoAuth | Error::AuthFailed | Error::InvalidAcl => RegistryError::refused(
            format!(
                "ZooKeeper refuses {what}: correct user and password, or the rights of the nodes"
            ),
            error,
        ),
        Error::Unimplemented => RegistryError::refused(
            format!("ZooKeeper cannot do {what}: it must be at least version 3.6"),
            error,
        ),
        Error::SessionExpired | Error::ClientClosed => {
            RegistryError::lost(format!("the session at ZooKeeper is over: {what}"))
        }
        _ => RegistryError::away(format!("ZooKeeper cannot do {what}"), error),
    }
}
