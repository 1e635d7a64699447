//! No more than so many calls to one target at once, so that a target that hangs does not take the
//! memory and the callers of all others with it.
//!
//! Those that find no place wait in the order in which they came, no more than so many, and not past
//! their deadline. The caps are those of Envoy's circuit breakers and gRFC A32.
//!
//! Places and waiting calls are counted in one word, so that while nobody waits a call comes in and
//! goes out by one atomic operation each. Only waiting takes a lock. A place that becomes free while
//! somebody waits is handed over, so nobody who comes later gets it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// How many calls a target may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BulkheadSettings {
    /// Calls in progress at most; at least 1.
    pub in_flight_max: u32,
    /// Calls that wait at most.
    pub waiting_max: u32,
}

impl Default for BulkheadSettings {
    fn default() -> Self {
        Self { in_flight_max: 1_024, waiting_max: 1_024 }
    }
}

/// Why a call got no place. Neither says anything about an instance, and neither is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many calls as may were waiting already.
    #[error("too many calls to this target are in progress and waiting")]
    Full,
    /// The deadline came before a place was free.
    #[error("the deadline passed while waiting for a place among the calls to this target")]
    Expired,
}

/// The places of one target.
#[derive(Debug)]
pub struct Bulkhead {
    settings: BulkheadSettings,
    /// Calls in progress in the lower half, calls that wait in the upper half. The upper half changes
    /// only under the lock of the queue, and is always its length.
    load: AtomicU64,
    queue: Mutex<Queue>,
}

/// Those who wait, by their number.
#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Permit>>,
}

/// A place. Dropping it lets the next call in.
#[derive(Debug)]
#[must_use = "the place is given up when the permit is dropped"]
pub struct Permit(Arc<Bulkhead>);

const ONE_WAITING: u64 = 1 << 32;

impl Bulkhead {
    /// All places free.
    #[must_use]
    pub fn new(settings: BulkheadSettings) -> Arc<Self> {
        Arc::new(Self { settings, load: AtomicU64::new(0), queue: Mutex::default() })
    }

    /// Takes a place, or waits for one until the deadline.
    ///
    /// # Errors
    /// Too many calls wait already, or the deadline came first.
    ///
    /// # Cancel safety
    /// A call that is dropped while it waits leaves the queue; a place that was handed to it in that
    /// moment goes to the next one.
    pub async fn enter(self: &Arc<Self>, deadline: Instant) -> Result<Permit, Refused> {
        if let Some(permit) = self.try_enter() {
            return Ok(permit);
        }
        let Some((number, place)) = self.line_up()? else {
            return Ok(Permit(Arc::clone(self)));
        };
        let _leaves_the_queue = Waiting { bulkhead: self, number };
        match timeout_at(deadline, place).await {
            Ok(Ok(permit)) => Ok(permit),
            // The sender is never dropped without a permit while this waits.
            Ok(Err(_)) | Err(_) => Err(Refused::Expired),
        }
    }

    /// Takes a place if one is free and nobody waits for it.
    #[must_use]
    pub fn try_enter(self: &Arc<Self>) -> Option<Permit> {
        self.try_take().then(|| Permit(Arc::clone(self)))
    }

    /// The calls in progress.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        in_flight(self.load.load(Relaxed))
    }

    /// The calls that wait.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        waiting(self.load.load(Relaxed))
    }

    fn try_take(&self) -> bool {
        let take = |load| self.has_place(load).then_some(load + 1);
        self.load.fetch_update(Relaxed, Relaxed, take).is_ok()
    }

    /// While anybody waits there is no place: those that become free are handed over and stay counted.
    fn has_place(&self, load: u64) -> bool {
        in_flight(load) < self.settings.in_flight_max.max(1)
    }

    /// Joins the queue; `None` when a place became free meanwhile and was taken.
    fn line_up(&self) -> Result<Option<(u64, oneshot::Receiver<Permit>)>, Refused> {
        let mut queue = self.queue.lock();
        let mut took = false;
        let next = |load| {
            took = self.has_place(load);
            if took {
                return Some(load + 1);
            }
            (waiting(load) < self.settings.waiting_max).then_some(load + ONE_WAITING)
        };
        if self.load.fetch_update(Relaxed, Relaxed, next).is_err() {
            return Err(Refused::Full);
        }
        if took {
            return Ok(None);
        }
        let (sender, receiver) = oneshot::channel();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.insert(number, sender);
        Ok(Some((number, receiver)))
    }

    /// Gives the place up if nobody waits for it.
    fn try_free(&self) -> bool {
        let free = |load| (waiting(load) == 0).then(|| load - 1);
        self.load.fetch_update(Relaxed, Relaxed, free).is_ok()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let bulkhead = &self.0;
        while !bulkhead.try_free() {
            let mut queue = bulkhead.queue.lock();
            let Some((_, next)) = queue.waiting.pop_first() else {
                continue;
            };
            bulkhead.load.fetch_sub(ONE_WAITING, Relaxed);
            drop(queue);
            // A call that gave up in this moment drops the new permit, which hands it on.
            drop(next.send(Permit(Arc::clone(bulkhead))));
            return;
        }
    }
}

/// A call in the queue. Dropped when it got its place, and when it gave up.
struct Waiting<'a> {
    bulkhead: &'a Bulkhead,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut queue = self.bulkhead.queue.lock();
        if queue.waiting.remove(&self.number).is_some() {
            self.bulkhead.load.fetch_sub(ONE_WAITING, Relaxed);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half of the word")]
fn in_flight(load: u64) -> u32 {
    load as u32
}

fn waiting(load: u64) -> u32 {
    (load >> 32) as u32
}

#[cfg(test)]
mod tests;
