//! A delivery in the engine's hands.

use std::collections::HashMap;
use std::sync::Arc;

use antiphon_core::Timestamp;
use antiphon_telemetry::metrics::Counter;
use tokio::time::Instant;

use super::executor::Item;
use super::ladder::Tries;
use crate::handler::Handler;
use crate::message::Message;
use crate::metrics::{GroupMetrics, KindMetrics};
use crate::port::Delivery;

/// How many kinds one group tells apart in its metrics.
const KINDS_MAX: usize = 256;

/// A delivery, and what was tried with it. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) delivery: Delivery,
    pub(crate) kind: Arc<Kind>,
    pub(crate) tries: Tries,
    /// When it was first tried here.
    pub(crate) since: Option<Instant>,
    /// Whether it runs in no batch: one that it was in came to nothing as a whole.
    pub(crate) alone: bool,
}

impl Held {
    pub(crate) fn new(delivery: Delivery, kind: Arc<Kind>) -> Self {
        let tries = Tries::arriving(delivery.attempt);
        Self { delivery, kind, tries, since: None, alone: false }
    }
}

impl Item for Held {
    fn message(&self) -> &Arc<Message> {
        &self.delivery.message
    }

    fn is_alone(&self) -> bool {
        self.alone
    }
}

/// What is known of a kind of message, looked up once.
#[derive(Debug)]
pub(crate) struct Kind {
    name: String,
    /// The kind as metrics name it.
    pub(crate) label: String,
    /// What its spans are called.
    pub(crate) span: String,
    /// Whether the handler knows it.
    pub(crate) known: bool,
    pub(crate) metrics: KindMetrics,
}

/// The kinds that a group has met.
#[derive(Debug, Default)]
pub(crate) struct Kinds {
    met: HashMap<String, Arc<Kind>>,
    /// Messages of one kind often come in a row.
    last: Option<Arc<Kind>>,
}

impl Kinds {
    pub(crate) fn get(
        &mut self,
        kind: &str,
        handler: &dyn Handler,
        metrics: &GroupMetrics,
    ) -> Arc<Kind> {
        if let Some(last) = self.last.as_ref().filter(|last| last.name == kind) {
            return Arc::clone(last);
        }
        let found = match self.met.get(kind) {
            Some(met) => Arc::clone(met),
            None => self.meet(kind, handler, metrics),
        };
        self.last = Some(Arc::clone(&found));
        found
    }

    fn meet(&mut self, kind: &str, handler: &dyn Handler, metrics: &GroupMetrics) -> Arc<Kind> {
        // What anybody may publish must not make metrics without bound: only kinds that the
        // handler knows get labels of their own, and only so many of them.
        let known = handler.handles(kind);
        let crowded = self.met.len() >= KINDS_MAX;
        let label = if known && !crowded { kind } else { "other" };
        let made = Arc::new(Kind {
            name: kind.to_owned(),
            label: label.to_owned(),
            span: format!("process {label}"),
            known,
            metrics: metrics.kind(label),
        });
        if !crowded {
            self.met.insert(kind.to_owned(), Arc::clone(&made));
        }
        made
    }
}

/// Counts a message of an unknown kind.
pub(crate) fn ignored(counter: &Counter, group: &str, message: &Message) {
    counter.inc();
    if tracing::enabled!(tracing::Level::DEBUG) {
        let (kind, id) = (&message.kind, message.id);
        message.context(Timestamp::EPOCH).sync_scope(|| {
            tracing::debug!(group, %kind, %id, "kind not handled, acknowledged");
        });
    }
}
