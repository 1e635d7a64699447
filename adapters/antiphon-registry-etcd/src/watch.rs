//! Who is registered: all keys of a service at a revision, and what happens after it.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_core::BoxFuture;
use antiphon_discovery::{Answers, Instance, Record, RegistryError};
use antiphon_registry_http::Lines;
use tokio::time::{Instant, sleep_until};

use crate::client::{Client, shown};
use crate::keys;
use crate::wire::{Bytes, EventKind, KeyValue, Line, WatchAnswer};

/// How often a watch on which nothing happens is checked by a question. A server that hangs keeps its
/// connections open.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);

/// The keys of one service.
pub(crate) struct Keys {
    client: Client,
    service: String,
    end: Vec<u8>,
    /// What is followed; without it all keys are read first.
    watch: Option<Lines>,
    instances: BTreeMap<Bytes, Instance>,
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
            instances: BTreeMap::new(),
            check_at: Instant::now(),
        }
    }

    async fn answer(&mut self) -> Result<Vec<Instance>, RegistryError> {
        if self.watch.is_none() {
            // Always all keys, also when only the connection was lost: a server that lost its data
            // begins to count anew, and would be silent until it reaches our revision.
            let range = self.client.range(&self.service, &self.end).await?;
            let instances = range.kvs.into_iter().filter_map(read).collect();
            let revision = range.header.revision + 1;
            let watch = self.client.watch(&self.service, &self.end, revision).await?;
            self.instances = instances;
            self.watch = Some(watch);
            self.check_at = Instant::now() + CHECK_INTERVAL;
            return Ok(self.all());
        }
        let followed = self.follow().await;
        if followed.is_err() {
            self.watch = None;
        }
        followed.map(|()| self.all())
    }

    /// Waits until something changes.
    async fn follow(&mut self) -> Result<(), RegistryError> {
        let lost = |why: &str| RegistryError::silent(format!("a watch at etcd is over: {why}"));
        loop {
            let Some(watch) = &mut self.watch else { return Err(lost("it was never there")) };
            let line = tokio::select! {
                line = watch.next() => line,
                () = sleep_until(self.check_at) => {
                    self.client.check(&self.service, &self.end).await?;
                    self.check_at = Instant::now() + CHECK_INTERVAL;
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

    fn apply(&mut self, answer: WatchAnswer) {
        for event in answer.events {
            let key = event.kv.key.clone();
            let now = match event.kind {
                EventKind::Put => read(event.kv),
                EventKind::Delete => None,
            };
            match now {
                Some((key, instance)) => self.instances.insert(key, instance),
                None => self.instances.remove(&key),
            };
        }
    }

    fn all(&self) -> Vec<Instance> {
        self.instances.values().cloned().collect()
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

fn read(pair: KeyValue) -> Option<(Bytes, Instance)> {
    match Record::read(&pair.value.0) {
        Ok(instance) => Some((pair.key, instance)),
        Err(error) => {
            tracing::error!(
                key = shown(&pair.key),
                %error,
                "a key that is no instance is left out; remove it"
            );
            None
        }
    }
}
