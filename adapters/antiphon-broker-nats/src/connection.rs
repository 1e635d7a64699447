//! The connection and its supervisor.
//!
//! Each connection that is made is an epoch of its own: a new client, which is never connected anew
//! behind our back. So nothing that was sent over the old one can arrive after what is sent over the
//! new one, and nothing that was delivered by the old one can be settled over the new one. Before a
//! new connection is used, topics and groups are declared again, since the server may have forgotten
//! them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use antiphon_config::without_login;
use antiphon_core::retry::Decision;
use antiphon_core::{Retry, RetryPolicy};
use antiphon_messaging::Topology;
use async_nats::jetstream::{self, kv};
use async_nats::{Client, Event, ServerError};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::error::{OpenError, setting};
use crate::login;
use crate::publish::Confirms;
use crate::settings::Settings;
use crate::topology;

/// The waits between attempts to connect.
const RECONNECT: RetryPolicy =
    RetryPolicy::exponential(Duration::from_millis(50), Duration::from_secs(5));
/// How often the server is asked for a sign of life; two that are missing end the connection.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// How long the server may take for a request.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The oldest server that has what is needed.
const VERSION_MIN: (u64, u64, u64) = (2, 9, 0);
/// How many messages may wait in one subscription. Pulls ask for far fewer.
const SUBSCRIPTION_CAPACITY: usize = 1 << 16;
/// How many commands may wait for the socket.
const CLIENT_CAPACITY: usize = 4_096;

/// One connection.
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    /// Who reads what: groups, and the lanes of ordered ones.
    pub(crate) groups: kv::Store,
    /// What is forgotten after a while: signs of life, attempts.
    pub(crate) live: kv::Store,
    pub(crate) confirms: Arc<Confirms>,
    /// The server's limit, headers included.
    pub(crate) payload_max: usize,
    fate: watch::Sender<Option<String>>,
}

impl Link {
    /// Ends the connection, if it has not ended.
    pub(crate) fn lose(&self, why: &str) {
        lose(&self.fate, why);
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

impl Drop for Link {
    fn drop(&mut self) {
        lose(&self.fate, "the broker was dropped");
        let client = self.client.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { client.drain().await });
        }
    }
}

fn lose(fate: &watch::Sender<Option<String>>, why: &str) {
    fate.send_if_modified(|fate| {
        let first = fate.is_none();
        if first {
            *fate = Some(why.to_owned());
        }
        first
    });
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("lost", &*self.fate.borrow()).finish_non_exhaustive()
    }
}

/// Connects to the first of the servers that lets us in, and checks what it can do.
pub(crate) async fn connect(settings: &Settings) -> Result<Link, OpenError> {
    let mut worst = None;
    for url in settings.urls() {
        match connect_to(settings, url).await {
            Ok(link) => return Ok(link),
            // A refusal says more than silence.
            Err(error) if worst.is_none() || !error.is_transient() => worst = Some(error),
            Err(_) => {}
        }
    }
    Err(worst.unwrap_or_else(|| setting("url", "it names no server")))
}

async fn connect_to(settings: &Settings, url: &str) -> Result<Link, OpenError> {
    let shown = without_login(url);
    let (fate, _) = watch::channel(None);
    let confirms = Arc::new(Confirms::new(settings.publish_window));
    let connected = Arc::new(AtomicBool::new(false));
    let options = login::options(settings, url, Arc::clone(&connected))?
        .name("antiphon")
        // The library reckons the first connection in; see `login` for how it is the last.
        .max_reconnects(1)
        .ignore_discovered_servers()
        .retain_servers_order()
        .connection_timeout(settings.connect_timeout.0)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .ping_interval(PING_INTERVAL)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .client_capacity(CLIENT_CAPACITY)
        .event_callback({
            let (fate, confirms) = (fate.clone(), Arc::clone(&confirms));
            move |event| {
                heed(&event, &fate, &confirms);
                std::future::ready(())
            }
        });
    let client = options.connect(url).await.map_err(|error| login::refusal(&shown, error))?;
    connected.store(true, Ordering::SeqCst);
    let info = client.server_info();
    if version(&info.version) < VERSION_MIN {
        return Err(OpenError::TooOld { url: shown, version: info.version });
    }
    let jetstream = jetstream::ContextBuilder::new().timeout(REQUEST_TIMEOUT).build(client.clone());
    if let Err(source) = topology::account(&client).await {
        return Err(OpenError::NoJetStream { url: shown, source });
    }
    let server = |action: &'static str| {
        let url = shown.clone();
        move |source| OpenError::Server { url, action: action.to_owned(), source }
    };
    let (groups, live) =
        topology::buckets(&jetstream, settings).await.map_err(server("making the buckets"))?;
    let inbox = client.new_inbox();
    let answers = client.subscribe(format!("{inbox}.*")).await;
    let answers = answers.map_err(|error| server("subscribing")(error.into()))?;
    confirms.listen(inbox, answers);
    let payload_max = info.max_payload;
    Ok(Link { client, jetstream, groups, live, confirms, payload_max, fate })
}

/// Takes note of what happens to the connection.
fn heed(event: &Event, fate: &watch::Sender<Option<String>>, confirms: &Confirms) {
    match event {
        Event::Disconnected | Event::Closed => lose(fate, "the connection to the server is gone"),
        Event::ServerError(ServerError::Other(text)) => {
            if let Some(subject) = denied(text) {
                confirms.deny(subject);
            }
            tracing::warn!(%text, "NATS server refuses");
        }
        Event::SlowConsumer(_) => lose(fate, "messages were dropped: too many at a time"),
        _ => {}
    }
}

/// The subject to which publishing is not allowed.
fn denied(text: &str) -> Option<&str> {
    let lower = text.to_ascii_lowercase();
    let at = lower.find("permissions violation for publish to \"")?;
    text[at..].split('"').nth(1)
}

/// The numbers of a version, as far as they are numbers.
pub(crate) fn version(text: &str) -> (u64, u64, u64) {
    let mut numbers = text.trim_start_matches('v').split(['.', '-']).map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().unwrap_or(0)
    });
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
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
        let why = link.lost().await;
        tracing::warn!(why, "NATS connection lost");
        links.send_replace(None);
        // What still waits for a confirmation will get none.
        link.confirms.close();
        let client = link.client.clone();
        tokio::spawn(async move { client.drain().await });
        drop(link);
        link = Arc::new(reconnect(&settings, &declared).await);
        links.send_replace(Some(Arc::clone(&link)));
        tracing::info!("NATS connection restored");
    }
}

async fn reconnect(settings: &Settings, declared: &Declared) -> Link {
    let mut failures = 0;
    loop {
        let error: antiphon_core::BoxError = match connect(settings).await {
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
        tracing::warn!(%error, cause, ?wait, "NATS cannot be reached");
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(version("2.9.10"), (2, 9, 10));
        assert_eq!(version("v2.11.0-RC.1"), (2, 11, 0));
        assert!(version("2.10.0") > version("2.9.24") && version("1.4") < VERSION_MIN);
        assert_eq!(version("odd"), (0, 0, 0));
    }

    #[test]
    fn a_forbidden_subject_is_named() {
        let text = "Permissions Violation for Publish to \"shop.orders.L3\"";
        assert_eq!(denied(text), Some("shop.orders.L3"));
        assert_eq!(denied("Permissions Violation for Subscription to \"x\""), None);
    }
}
