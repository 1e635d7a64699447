//! Limits that all instances keep together, over a store.
//!
//! A call is decided about at once wherever that can be: by what this instance took from the store in
//! advance ([`Share`]), by what the store said last, or, while the store is away ([`Outage`]), by a
//! limit of this instance's own. Otherwise it waits for one question to the store, no longer than the
//! settings say, and is then decided about by the own limit.
//!
//! Questions are asked by tasks of their own, one for each key at a time: a caller that goes away leaves
//! nobody waiting for it. The answer is shared out the moment that it comes, in the order in which calls
//! came, so no call loses its place because its thread was busy.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::BoxError;
use antiphon_resilience::rate::{Entry, Outage, Share, Way};
use antiphon_resilience::{RateStore, Taken};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::{CLIENTS_MAX, Checked, OwnRate, RateRule};
use crate::server::admission::Client;
use crate::server::metrics::{Asked, ServerMetrics};

/// The parts of a table of clients, each with a lock of its own.
const SHARDS: usize = 16;
/// How often a full part is looked through for clients that are idle.
const SWEEP_INTERVAL: Duration = Duration::from_millis(200);
/// The longest name of a client that is sent to the store, where each has a limit of its own. Whoever
/// has a longer one is limited by each instance alone.
const CLIENT_BYTES_MAX: usize = 256;

/// Where instances share their rate limits.
#[derive(Clone)]
pub struct RateSharing {
    store: Arc<dyn RateStore>,
    timeout: Duration,
}

impl RateSharing {
    /// In this store. A call waits for it no longer than `timeout`; then the instance decides alone.
    #[must_use]
    pub fn new(store: Arc<dyn RateStore>, timeout: Duration) -> Self {
        Self { store, timeout }
    }
}

impl PartialEq for RateSharing {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.store, &other.store) && self.timeout == other.timeout
    }
}

impl fmt::Debug for RateSharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateSharing").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// The store, for all limits of a server.
pub(super) struct Store {
    store: Arc<dyn RateStore>,
    timeout: Duration,
    outage: Outage,
    metrics: ServerMetrics,
    origin: Instant,
}

impl Store {
    pub(super) fn new(sharing: &RateSharing, metrics: &ServerMetrics, now: Instant) -> Self {
        Self {
            store: Arc::clone(&sharing.store),
            timeout: sharing.timeout,
            outage: Outage::default(),
            metrics: metrics.clone(),
            origin: now,
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.origin);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    async fn take(&self, key: &[u8], rule: RateRule, wanted: u32) -> Result<Taken, BoxError> {
        let taken = timeout(self.timeout, self.store.take(key, rule.rate, wanted)).await;
        taken.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.timeout).into()))
    }

    fn answered(&self, taken: Taken) {
        self.metrics.asked(if taken.granted > 0 { Asked::Granted } else { Asked::Refused });
        if self.outage.answered() {
            self.metrics.rates_alone.set(0);
            tracing::info!("the store of shared rate limits is back: instances share them again");
        }
    }

    fn failed(&self, error: &BoxError) {
        self.metrics.asked(Asked::Failed);
        if self.outage.failed(self.nanos(Instant::now())) {
            self.metrics.rates_alone.set(1);
            tracing::warn!(
                %error,
                "the store of shared rate limits is away: this instance keeps them alone until it is back"
            );
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("outage", &self.outage).finish_non_exhaustive()
    }
}

/// A limit that all instances keep together.
#[derive(Debug)]
pub(in crate::server) struct SharedRate {
    name: String,
    rule: RateRule,
    store: Arc<Store>,
    /// For when this instance is alone.
    own: OwnRate,
    hashing: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    keys_per_shard: usize,
}

/// Some of the keys, by their hash.
#[derive(Debug, Default)]
struct Shard {
    keys: HashMap<u64, Key>,
    /// When it is worth looking again for keys that are idle.
    sweep_at: u64,
}

/// What there is of one key.
#[derive(Debug, Default)]
struct Key {
    share: Share,
    /// Who waits for the store, in the order in which they came.
    waiting: Vec<oneshot::Sender<Said>>,
}

/// What is said to a call: an error is the time after which to come again.
type Said = Result<(), Duration>;

impl SharedRate {
    pub(super) fn new(name: &str, rule: RateRule, store: Arc<Store>, now: Instant) -> Self {
        Self {
            name: name.to_owned(),
            rule,
            store,
            own: OwnRate::new(rule, now),
            hashing: RandomState::new(),
            shards: Default::default(),
            keys_per_shard: CLIENTS_MAX.div_ceil(SHARDS),
        }
    }

    /// Decides about a call, at once where that can be.
    pub(super) fn check(self: &Arc<Self>, client: Client<'_>, now: Instant) -> Checked {
        let is_long = matches!(client, Client::Named(name) if name.len() > CLIENT_BYTES_MAX);
        if is_long && self.rule.per_client {
            return self.own.check(client, now).into();
        }
        match self.store.outage.way(self.store.nanos(now)) {
            Way::Shared => {
                // There may be more clients than the table has room for.
                self.enter(client, now).unwrap_or_else(|| self.own.check(client, now).into())
            }
            Way::Alone => self.own.check(client, now).into(),
            Way::Probe => {
                self.probe(client, now);
                self.own.check(client, now).into()
            }
        }
    }

    /// Decides by what is here of the key; `None` where there is no room for the key.
    fn enter(self: &Arc<Self>, client: Client<'_>, now: Instant) -> Option<Checked> {
        let (hash, nanos) = (self.hash(client), self.store.nanos(now));
        let mut shard = self.shard(hash).lock();
        let key = shard.key(hash, nanos, self.keys_per_shard)?;
        let checked = match key.share.enter(nanos) {
            Entry::In => Checked::In,
            Entry::Refused(nanos) => Checked::Refused(Duration::from_nanos(nanos)),
            Entry::Waits => {
                let (waiting, said) = oneshot::channel();
                key.waiting.push(waiting);
                let (rate, until) = (Arc::clone(self), now + self.store.timeout);
                Checked::Waits(Waiting { rate, client: client.into(), said, until })
            }
        };
        let asks = key.share.begins_asking(nanos);
        drop(shard);
        if asks {
            self.ask(hash, self.name_of(client));
        }
        Some(checked)
    }

    /// Asks the store without anybody waiting for it.
    fn probe(self: &Arc<Self>, client: Client<'_>, now: Instant) {
        let (hash, nanos) = (self.hash(client), self.store.nanos(now));
        let asks = {
            let mut shard = self.shard(hash).lock();
            let key = shard.key(hash, nanos, self.keys_per_shard);
            key.is_some_and(|key| key.share.begins_probing())
        };
        if asks {
            self.ask(hash, self.name_of(client));
        }
    }

    /// Begins a question about the key of this name. To be called without the lock: a runtime that
    /// ends drops the task at once, which takes it.
    fn ask(self: &Arc<Self>, hash: u64, name: Vec<u8>) {
        let question = Question { rate: Arc::clone(self), hash, is_answered: false };
        tokio::spawn(question.ask(name));
    }

    fn shard(&self, hash: u64) -> &Mutex<Shard> {
        &self.shards[usize::try_from(hash).unwrap_or(0) % SHARDS]
    }

    fn hash(&self, client: Client<'_>) -> u64 {
        if self.rule.per_client { self.hashing.hash_one(client) } else { 0 }
    }

    /// What the key is called in the store.
    fn name_of(&self, client: Client<'_>) -> Vec<u8> {
        let mut name = self.name.clone().into_bytes();
        if self.rule.per_client {
            match client {
                Client::Address(address) => {
                    name.extend_from_slice(format!(":address:{address}").as_bytes());
                }
                Client::Named(client) => {
                    name.extend_from_slice(b":client:");
                    name.extend_from_slice(client);
                }
            }
        }
        name
    }
}

impl Shard {
    /// What there is of a key, which may be nothing yet; `None` when there is no room for it.
    fn key(&mut self, hash: u64, now: u64, keys_max: usize) -> Option<&mut Key> {
        if self.keys.len() >= keys_max && !self.keys.contains_key(&hash) {
            if now >= self.sweep_at {
                self.keys.retain(|_, key| !key.share.is_idle(now));
                let pause = u64::try_from(SWEEP_INTERVAL.as_nanos()).unwrap_or(u64::MAX);
                self.sweep_at = now.saturating_add(pause);
            }
            if self.keys.len() >= keys_max {
                return None;
            }
        }
        Some(self.keys.entry(hash).or_default())
    }
}

/// A question to the store. However it ends, nobody waits for it longer.
struct Question {
    rate: Arc<SharedRate>,
    hash: u64,
    is_answered: bool,
}

impl Question {
    async fn ask(mut self, name: Vec<u8>) {
        let rate = Arc::clone(&self.rate);
        let store = &rate.store;
        let begun = store.nanos(Instant::now());
        // Those who came meanwhile are in it.
        let wanted = self.change(|key| key.share.ask(&rate.rule.rate, begun));
        match store.take(&name, rate.rule, wanted.unwrap_or(1)).await {
            Ok(taken) => {
                store.answered(taken);
                self.is_answered = true;
                let now = store.nanos(Instant::now());
                let asks_again = self.change(|key| key.answered(&rate.rule, taken, now));
                if asks_again == Some(true) {
                    rate.ask(self.hash, name);
                }
            }
            Err(error) => store.failed(&error),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Key) -> T) -> Option<T> {
        self.rate.shard(self.hash).lock().keys.get_mut(&self.hash).map(change)
    }
}

impl Key {
    /// Shares out what the store granted. Whether it is to be asked again, for those who came after
    /// the question was sent.
    fn answered(&mut self, rule: &RateRule, taken: Taken, now: u64) -> bool {
        self.share.answered(&rule.rate, taken, now);
        for waiting in std::mem::take(&mut self.waiting) {
            // What those who went away do not need is for the next.
            if waiting.is_closed() {
                continue;
            }
            let said = match self.share.enter(now) {
                Entry::In => Ok(()),
                Entry::Refused(nanos) => Err(Duration::from_nanos(nanos)),
                Entry::Waits => {
                    self.waiting.push(waiting);
                    continue;
                }
            };
            // Whoever goes away in this moment has been let in.
            let _ = waiting.send(said);
        }
        self.share.begins_asking(now)
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        if !self.is_answered {
            // Whoever waits hears that nothing will be said.
            self.change(|key| {
                key.share.failed();
                key.waiting.clear();
            });
        }
    }
}

/// A call that waits for what the store says.
pub(in crate::server) struct Waiting {
    rate: Arc<SharedRate>,
    client: WaitingClient,
    said: oneshot::Receiver<Said>,
    until: Instant,
}

impl Waiting {
    /// Waits until it is decided, no longer than the settings say.
    ///
    /// # Errors
    /// The call is over the limit: after how much time to come again.
    ///
    /// # Cancel safety
    /// When the future is dropped, no more is used up than the place of this call.
    pub(in crate::server) async fn decided(self) -> Result<(), Duration> {
        match timeout_at(self.until, self.said).await {
            Ok(Ok(said)) => said,
            _ => self.rate.own.check(self.client.borrowed(), Instant::now()),
        }
    }
}

/// A [`Client`] that outlives its request.
enum WaitingClient {
    Address(IpAddr),
    Named(Box<[u8]>),
}

impl WaitingClient {
    fn borrowed(&self) -> Client<'_> {
        match self {
            Self::Address(address) => Client::Address(*address),
            Self::Named(name) => Client::Named(name),
        }
    }
}

impl From<Client<'_>> for WaitingClient {
    fn from(client: Client<'_>) -> Self {
        match client {
            Client::Address(address) => Self::Address(address),
            Client::Named(name) => Self::Named(name.into()),
        }
    }
}

#[cfg(test)]
mod tests;
