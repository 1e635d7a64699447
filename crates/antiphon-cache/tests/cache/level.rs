//! A shared level in memory that keeps the port's rules, and can be away, silent or slow.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

use antiphon_cache::{Age, Found, Lease, Listener, Record, SharedLevel};
use antiphon_core::{BoxError, BoxFuture};
use parking_lot::Mutex;
use tokio::time::Instant;

/// How it behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    /// Every question is an error at once.
    Away,
    /// No question is answered.
    Silent,
    /// It is read, and nothing is invalidated: it is the primary no more.
    ReadOnly,
}

/// What all processes share.
#[derive(Default)]
struct Server {
    keys: HashMap<String, Stored>,
    next_lease: u64,
    listeners: Vec<(u32, Arc<AtomicBool>, Weak<dyn Listener>)>,
}

struct Stored {
    lease: Lease,
    record: Option<(Record, Instant)>,
}

/// One process's end of it.
pub(crate) struct Level {
    process: u32,
    server: Arc<Mutex<Server>>,
    mood: Mutex<Mood>,
    /// Whether it hears of invalidations.
    deaf: Arc<AtomicBool>,
    /// How many questions of a kind were asked.
    pub(crate) asked: Mutex<u32>,
    /// How many turns of the runtime each way takes.
    pub(crate) turns: AtomicU32,
}

/// The ends of this many processes.
pub(crate) fn processes(count: u32, turns: u32) -> Vec<Arc<Level>> {
    let server = Arc::new(Mutex::new(Server::default()));
    (0..count)
        .map(|process| {
            let (server, mood) = (Arc::clone(&server), Mutex::new(Mood::Well));
            let (deaf, asked, turns) = (Arc::default(), Mutex::new(0), AtomicU32::new(turns));
            Arc::new(Level { process, server, mood, deaf, asked, turns })
        })
        .collect()
}

impl Level {
    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    /// It does not hear of invalidations from now on.
    pub(crate) fn deafen(&self) {
        self.deaf.store(true, SeqCst);
        self.own().iter().for_each(|listener| listener.deaf());
    }

    /// Its connection is back: this process may have missed something.
    pub(crate) fn reconnect(&self) {
        self.set(Mood::Well);
        self.deaf.store(false, SeqCst);
        self.own().iter().for_each(|listener| listener.missed());
    }

    fn own(&self) -> Vec<Arc<dyn Listener>> {
        let server = self.server.lock();
        let own = server.listeners.iter().filter(|(process, ..)| *process == self.process);
        own.filter_map(|(.., listener)| listener.upgrade()).collect()
    }

    async fn way(&self) -> Result<(), BoxError> {
        *self.asked.lock() += 1;
        let mood = *self.mood.lock();
        match mood {
            Mood::Well | Mood::ReadOnly => {
                for _ in 0..self.turns.load(SeqCst) {
                    tokio::task::yield_now().await;
                }
                Ok(())
            }
            Mood::Away => Err("no connection".into()),
            Mood::Silent => std::future::pending().await,
        }
    }

    async fn look_up(&self, key: &str) -> Result<Found, BoxError> {
        self.way().await?;
        let found = {
            let mut server = self.server.lock();
            server.next_lease += 1;
            let offered = Lease(server.next_lease.to_string());
            let now = Instant::now();
            let over = |stored: &Stored| {
                let record = stored.record.as_ref();
                record.is_some_and(|(record, since)| now >= *since + record.fresh + record.stale)
            };
            if server.keys.get(key).is_some_and(over) {
                server.keys.remove(key);
            }
            let stored = server.keys.entry(key.to_owned());
            let stored = stored.or_insert(Stored { lease: offered, record: None });
            let record = stored.record.as_ref().map(|(record, since)| {
                let age = now - *since;
                let age = match record.fresh.checked_sub(age) {
                    Some(left) if !left.is_zero() => Age::Fresh(left),
                    _ => Age::Stale(age - record.fresh),
                };
                (record.value.clone(), age)
            });
            Found { lease: stored.lease.clone(), stored: record }
        };
        self.way().await?;
        Ok(found)
    }

    async fn store(&self, key: &str, lease: &Lease, record: Record) -> Result<bool, BoxError> {
        self.way().await?;
        let mut server = self.server.lock();
        match server.keys.get_mut(key) {
            Some(stored) if stored.lease == *lease => {
                stored.record = Some((record, Instant::now()));
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    async fn remove(&self, keys: &[String]) -> Result<(), BoxError> {
        self.way().await?;
        if *self.mood.lock() == Mood::ReadOnly {
            return Err("it takes no writes".into());
        }
        let others: Vec<_> = {
            let mut server = self.server.lock();
            keys.iter().for_each(|key| drop(server.keys.remove(key)));
            let others = server
                .listeners
                .iter()
                .filter(|(process, deaf, _)| *process != self.process && !deaf.load(SeqCst));
            others.filter_map(|(.., listener)| listener.upgrade()).collect()
        };
        for key in keys {
            others.iter().for_each(|listener| listener.changed(key));
        }
        self.way().await
    }
}

impl SharedLevel for Level {
    fn read<'a>(&'a self, _: &'a str, key: &'a str) -> BoxFuture<'a, Result<Found, BoxError>> {
        Box::pin(self.look_up(key))
    }

    fn fill<'a>(
        &'a self,
        _: &'a str,
        key: &'a str,
        lease: &'a Lease,
        record: Record,
    ) -> BoxFuture<'a, Result<bool, BoxError>> {
        Box::pin(self.store(key, lease, record))
    }

    fn invalidate<'a>(
        &'a self,
        _: &'a str,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(self.remove(keys))
    }

    fn listen(&self, _: &str, listener: Weak<dyn Listener>) {
        let told = listener.upgrade().filter(|_| !self.deaf.load(SeqCst));
        self.server.lock().listeners.push((self.process, Arc::clone(&self.deaf), listener));
        told.iter().for_each(|listener| listener.missed());
    }
}

/// Longer than the cache waits for it.
pub(crate) const TOO_LONG: Duration = Duration::from_millis(100);
