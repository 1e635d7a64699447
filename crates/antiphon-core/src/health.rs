//! How the parts of a process are, and whether it should be sent work.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Collects what each part says of itself. Cheap to clone; clones share the answers.
///
/// Only what is local counts: a process that cannot reach a neighbour is still ready.
#[derive(Clone, Debug)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Mutex<BTreeMap<String, Option<String>>>,
    ready: watch::Sender<bool>,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Nobody has said anything yet: ready.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner { parts: Mutex::default(), ready: watch::Sender::new(true) }))
    }

    /// `part` can do its work.
    pub fn well(&self, part: &str) {
        self.set(part, None);
    }

    /// `part` cannot do its work, and why, in words for an operator.
    pub fn unwell(&self, part: &str, reason: impl Into<String>) {
        self.set(part, Some(reason.into()));
    }

    fn set(&self, part: &str, reason: Option<String>) {
        let mut parts = self.0.parts.lock();
        parts.insert(part.to_owned(), reason);
        let ready = parts.values().all(Option::is_none);
        self.0.ready.send_if_modified(|now| std::mem::replace(now, ready) != ready);
    }

    /// Whether every part is well.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.0.ready.borrow()
    }

    /// Follows [`Self::is_ready`].
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.0.ready.subscribe()
    }

    /// Every part that spoke, with the reason if it is unwell, sorted by name.
    #[must_use]
    pub fn parts(&self) -> Vec<(String, Option<String>)> {
        self.0.parts.lock().clone().into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unwell_part_makes_the_process_unready_and_says_why() {
        let health = Health::new();
        health.well("store");
        health.unwell("broker", "connection refused");
        assert!(!health.is_ready());
        assert!(health.parts().contains(&("broker".into(), Some("connection refused".into()))));
        health.well("broker");
        assert!(health.is_ready());
    }
}
