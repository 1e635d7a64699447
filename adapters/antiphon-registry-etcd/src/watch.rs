//! Who is registered: all keys of a service at a revision, and what happens after it.

use std::collections::BTreeMap;

use antiphon_core::BoxFuture;
use antiphon_discovery::{Answers, Instance, Record, RegistryError};
use antiphon_registry_http::Lines;
use tokio::time::{Instant, sleep_until};

use crate::client::{Client, shown};
use crate::keys;
use crate::wire::{Bytes, EventKind, KeyValue, Line, WatchAnswer};

/// The keys of one service.
pub(crate) struct Keys {
    client: Client,
    service: String,
    end: Vec<u8>,
    /// What is followed; without it all keys are read first.
    watch: Option<Lines>,
    /// What is in the keys; nothing in one that is no instance.
    keys: BTreeMap<Bytes, Option<Instance>>,
    /// The newest revision that was heard of.
    revision: i64,
    /// When to ask whether the watch has missed something: a server that hangs keeps its connections
    /// open, and a connection that nobody carries any more says nothing of it.
    check_at: Instant,
}

impl Keys {
    pub(crate) fn new(client: Client, name: &str) -> Self {
        let service = keys::service(&client.settings().prefix, name);
        let end = keys::end(&service);
        Self {
            client,
            service,
            end,
            watch: None,
            keys: BTreeMap::new(),
            revision: 0,
            check_at: Instant::now(),
        }
    }

    async fn answer(&mut self) -> Result<Vec<Instance>, RegistryError> {
        let done = match self.watch {
            None => self.list().await,
            Some(_) => self.follow().await,
        };
        if done.is_err() {
            self.watch = None;
        }
        done.map(|()| self.keys.values().flatten().cloned().collect())
    }

    /// Reads all keys, also when only the connection was lost: a server that lost its data begins to
    /// count anew, and would be silent until it reaches our revision.
    async fn list(&mut self) -> Result<(), RegistryError> {
        let range = self.client.range(&self.service, &self.end).await?;
        let revision = range.header.revision;
        let watch = self.client.watch(&self.service, &self.end, revision + 1).await?;
        self.keys = range.kvs.into_iter().map(read).collect();
        self.revision = revision;
        self.watch = Some(watch);
        self.check_later();
        Ok(())
    }

    fn check_later(&mut self) {
        self.check_at = Instant::now() + self.client.settings().lease.0;
    }

    /// Waits until something changes.
    async fn follow(&mut self) -> Result<(), RegistryError> {
        let lost = |why: &str| RegistryError::silent(format!("a watch at etcd is over: {why}"));
        loop {
            let Some(watch) = &mut self.watch else { return Err(lost("it was never there")) };
            let line = tokio::select! {
                line = watch.next() => line,
                () = sleep_until(self.check_at) => {
                    if self.is_behind().await? {
                        self.watch = None;
                        return self.list().await;
                    }
                    self.check_later();
                    continue;
                }
            };
            let line = line
                .map_err(|error| RegistryError::away("a watch at etcd was cut", error))?
                .ok_or_else(|| lost("etcd ended it"))?;
            let line: Line<WatchAnswer> = serde_json::from_slice(&line).map_err(|error| {
                RegistryError::refused("what etcd says is not understood", error)
            })?;
            let Line { result: Some(answer), .. } = line else {
                let words = line.error.map(|error| error.to_string()).unwrap_or_default();
                return Err(lost(&words));
            };
            if answer.canceled {
                return Err(lost(&why_canceled(&answer)));
            }
            if !answer.events.is_empty() {
                self.apply(answer);
                return Ok(());
            }
        }
    }

    /// Whether there is something that the watch has not told. It may be on its way, but then reading
    /// everything costs little.
    async fn is_behind(&self) -> Result<bool, RegistryError> {
        let (count, revision) = (self.keys.len(), self.revision);
        let same = self.client.is_unchanged(&self.service, &self.end, revision, count).await?;
        if !same {
            tracing::debug!(service = self.service, "a watch at etcd has missed something");
        }
        Ok(!same)
    }

    fn apply(&mut self, answer: WatchAnswer) {
        for event in answer.events {
            self.revision = self.revision.max(event.kv.mod_revision);
            match event.kind {
                EventKind::Put => {
                    let (key, instance) = read(event.kv);
                    self.keys.insert(key, instance);
                }
                EventKind::Delete => {
                    self.keys.remove(&event.kv.key);
                }
            }
        }
    }
}

impl Answers for Keys {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, RegistryError>> {
        Box::pin(self.answer())
    }

    fn look_again(&mut self) {
        self.watch = None;
    }
}

fn why_canceled(answer: &WatchAnswer) -> String {
    if answer.compact_revision > 0 {
        let at = answer.compact_revision;
        return format!("it is behind, and the history before {at} is gone");
    }
    answer.cancel_reason.clone()
}

fn read(pair: KeyValue) -> (Bytes, Option<Instance>) {
    let instance = match Record::read(&pair.value.0) {
        Ok(instance) => Some(instance),
        Err(error) => {
            tracing::error!(
                key = shown(&pair.key),
                %error,
                "a key that is no instance is left out; remove it"
            );
            None
        }
    };
    (pair.key, instance)
}
