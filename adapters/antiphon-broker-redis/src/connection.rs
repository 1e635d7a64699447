//! The connection and its supervisor.
//!
//! Each connection that is made is an epoch of its own. So nothing that was sent over the old one can
//! arrive after what is sent over the new one, and nothing that was delivered by the old one can be
//! settled over the new one. Before a new connection is used, topics and groups are declared again,
//! since the server may have forgotten them.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_config::without_login;
use antiphon_core::retry::Decision;
use antiphon_core::{BoxError, Retry, RetryPolicy};
use antiphon_messaging::Topology;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ProtocolVersion, RedisError};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::error::{OpenError, refusal};
use crate::settings::Settings;
use crate::topology;

/// The waits between attempts to connect.
const RECONNECT: RetryPolicy =
    RetryPolicy::exponential(Duration::from_millis(50), Duration::from_secs(5));
/// How often the server is asked for a sign of life.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// How long the server may take for an answer.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The oldest server that has what is needed.
const VERSION_MIN: (u64, u64) = (7, 0);

/// What the server says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) version: String,
    /// From `INFO` and `CONFIG GET`, whichever answered.
    pub(crate) values: HashMap<String, String>,
}

impl Facts {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }
}

/// One connection: two in truth, so that a long batch does not stand in the way of signs of life.
pub(crate) struct Link {
    client: Client,
    /// For everything but messages.
    control: MultiplexedConnection,
    /// For messages.
    publishing: MultiplexedConnection,
    pub(crate) window: Semaphore,
    pub(crate) facts: Facts,
    connect_timeout: Duration,
    fate: watch::Sender<Option<String>>,
}

impl Link {
    pub(crate) fn control(&self) -> MultiplexedConnection {
        self.control.clone()
    }

    pub(crate) fn publishing(&self) -> MultiplexedConnection {
        self.publishing.clone()
    }

    /// A connection that may block for a while.
    pub(crate) async fn blocking(
        &self,
        block: Duration,
    ) -> Result<MultiplexedConnection, RedisError> {
        open(&self.client, self.connect_timeout, block + REQUEST_TIMEOUT).await
    }

    pub(crate) async fn pubsub(&self) -> Result<redis::aio::PubSub, BoxError> {
        let opened = tokio::time::timeout(self.connect_timeout, self.client.get_async_pubsub());
        Ok(opened.await.map_err(|_| "the server did not answer in time")??)
    }

    /// Ends the connection, if it has not ended.
    pub(crate) fn lose(&self, why: impl Into<String>) {
        let why = why.into();
        self.fate.send_if_modified(|fate| {
            let first = fate.is_none();
            if first {
                *fate = Some(why);
            }
            first
        });
    }

    /// Takes note of an error: some of them are the end of the connection.
    pub(crate) fn heed(&self, error: &RedisError) {
        let code = error.code().unwrap_or_default();
        if error.is_io_error() || error.is_unrecoverable_error() || error.is_timeout() {
            self.lose(format!("the connection to the server is gone: {error}"));
        } else if matches!(code, "READONLY" | "MASTERDOWN") {
            self.lose("the server is not the primary any more");
        }
    }

    /// Whether the connection is over.
    pub(crate) fn is_lost(&self) -> bool {
        self.fate.borrow().is_some()
    }

    /// Waits for the end of the connection; yields why.
    pub(crate) async fn lost(&self) -> String {
        let mut fate = self.fate.subscribe();
        match fate.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "the broker was dropped".to_owned(),
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("lost", &*self.fate.borrow()).finish_non_exhaustive()
    }
}

async fn open(
    client: &Client,
    connect_timeout: Duration,
    response_timeout: Duration,
) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(connect_timeout))
        .set_response_timeout(Some(response_timeout));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Connects, and checks what the server can do.
pub(crate) async fn connect(settings: &Settings) -> Result<Link, OpenError> {
    let shown = without_login(&settings.url);
    let client = settings.server().client(ProtocolVersion::RESP2)?;
    let refused = |error| refusal(&shown, error);
    let timeout = settings.connect_timeout.0;
    let mut control = open(&client, timeout, REQUEST_TIMEOUT).await.map_err(refused)?;
    let facts = facts(&mut control).await.map_err(refused)?;
    if version(&facts.version) < VERSION_MIN {
        return Err(OpenError::TooOld { url: shown, version: facts.version });
    }
    if facts.get("role").is_some_and(|role| role != "master") {
        return Err(OpenError::Replica { url: shown });
    }
    let limited = facts.get("maxmemory").is_some_and(|bytes| bytes != "0");
    if let Some(policy) = facts.get("maxmemory-policy").filter(|policy| limited && evicts(policy)) {
        return Err(OpenError::Evicts { url: shown, policy: policy.to_owned() });
    }
    let publishing = open(&client, timeout, settings.publish_timeout.0).await.map_err(refused)?;
    let (fate, _) = watch::channel(None);
    let window = Semaphore::new(settings.publish_window);
    Ok(Link { client, control, publishing, window, facts, connect_timeout: timeout, fate })
}

/// Whether streams may be thrown away: their keys never expire, so `volatile-…` spares them.
fn evicts(policy: &str) -> bool {
    policy.starts_with("allkeys")
}

/// Asks the server what it is and how it is set. Managed servers do not show their configuration.
async fn facts(control: &mut MultiplexedConnection) -> Result<Facts, RedisError> {
    let info: String = redis::cmd("INFO").query_async(control).await?;
    let mut values: HashMap<String, String> = info
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let mut ask = redis::cmd("CONFIG");
    ask.arg("GET").arg(&["appendonly", "appendfsync", "maxmemory", "maxmemory-policy", "save"]);
    if let Ok(config) = ask.query_async::<HashMap<String, String>>(control).await {
        values.extend(config);
    } else if let Some(policy) = values.get("maxmemory_policy").cloned() {
        values.insert("maxmemory-policy".to_owned(), policy);
    }
    let version = values.get("redis_version").cloned().unwrap_or_default();
    Ok(Facts { version, values })
}

/// The numbers of a version.
pub(crate) fn version(text: &str) -> (u64, u64) {
    let mut numbers = text.split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Keeps a connection. Dropping it ends the last one.
pub(crate) struct Supervisor {
    links: watch::Receiver<Option<Arc<Link>>>,
    task: AbortHandle,
}

/// What is declared again on every new connection.
pub(crate) type Declared = Arc<Mutex<Topology>>;

impl Supervisor {
    /// Goes on from a first connection.
    pub(crate) fn start(settings: Arc<Settings>, first: Link, declared: Declared) -> Self {
        let first = Arc::new(first);
        let (sender, links) = watch::channel(Some(Arc::clone(&first)));
        let task = tokio::spawn(supervise(settings, first, declared, sender)).abort_handle();
        Self { links, task }
    }

    /// The connection, if there is one.
    pub(crate) fn now(&self) -> Option<Arc<Link>> {
        self.links.borrow().clone().filter(|link| !link.is_lost())
    }

    /// The connection, as soon as there is one.
    pub(crate) async fn by(&self, deadline: Instant) -> Option<Arc<Link>> {
        let mut links = self.links.clone();
        let ready = |link: &Option<Arc<Link>>| link.as_ref().is_some_and(|link| !link.is_lost());
        let waited = tokio::time::timeout_at(deadline, links.wait_for(ready)).await;
        waited.ok()?.ok()?.clone()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(link) = &*self.links.borrow() {
            link.lose("the broker was dropped");
        }
    }
}

async fn supervise(
    settings: Arc<Settings>,
    first: Arc<Link>,
    declared: Declared,
    links: watch::Sender<Option<Arc<Link>>>,
) {
    let mut link = first;
    loop {
        let why = watch_over(&link, &settings, &declared).await;
        tracing::warn!(why, "Redis connection lost");
        links.send_replace(None);
        drop(link);
        link = Arc::new(reconnect(&settings, &declared).await);
        links.send_replace(Some(Arc::clone(&link)));
        tracing::info!("Redis connection restored");
    }
}

/// Asks for signs of life until the connection is lost, and meanwhile removes what nobody needs.
async fn watch_over(link: &Link, settings: &Settings, declared: &Declared) -> String {
    let pings = async {
        let mut control = link.control();
        loop {
            tokio::time::sleep(PING_INTERVAL).await;
            if let Err(error) = redis::cmd("PING").query_async::<()>(&mut control).await {
                link.heed(&error);
            }
        }
    };
    let trims = crate::trim::keep_trimming(link, settings, declared);
    tokio::select! {
        why = link.lost() => why,
        () = pings => String::new(),
        () = trims => String::new(),
    }
}

async fn reconnect(settings: &Settings, declared: &Declared) -> Link {
    let mut failures = 0;
    loop {
        let error: BoxError = match connect(settings).await {
            Ok(link) => {
                let topology = declared.lock().clone();
                match topology::declare(&link, settings, &topology).await {
                    Ok(()) => return link,
                    Err(error) => error.into(),
                }
            }
            Err(error) => error.into(),
        };
        failures += 1;
        let wait = match RECONNECT.decide(failures, Retry::Outage, fastrand::f64()) {
            Decision::RetryAfter(wait) => wait,
            // An outage never gives up.
            Decision::GiveUp => RECONNECT.delay_max,
        };
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        tracing::warn!(%error, cause, ?wait, "Redis cannot be reached");
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(version("7.0.15") >= VERSION_MIN && version("6.2.7") < VERSION_MIN);
        assert!(version("10.1") > VERSION_MIN && version("odd") < VERSION_MIN);
    }

    #[test]
    fn only_some_policies_throw_messages_away() {
        assert!(evicts("allkeys-lru") && !evicts("noeviction") && !evicts("volatile-ttl"));
    }
}
