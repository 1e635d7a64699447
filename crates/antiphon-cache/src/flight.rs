//! One load per key at a time, and whose result counts.
//!
//! While a key is being loaded its flight stands in a table, and who wants the key waits for that. The
//! table is also the memory level's lease: an invalidation removes the flight, and a flight that is
//! not in the table any more does not store what it loaded. Whatever is stored is stored under the
//! lock of the key's shard, so there is nothing between looking and storing.
//!
//! A flight belongs to the [`Leader`] that loads. When that is dropped without a result, because the
//! load panicked or its runtime ended, the flight is lost: the waiters are told, and one of them leads
//! the next.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use antiphon_core::Status;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Misses of different keys should not wait for each other.
const SHARDS: usize = 32;

/// What a load yielded: a value, the knowledge that there is none, or an error for all who waited.
pub(crate) type Outcome<V> = Result<Option<Arc<V>>, Arc<Status>>;

/// How far a load is.
pub(crate) enum Progress<V> {
    Flying,
    Landed(Outcome<V>),
    Lost,
}

type Flight<V> = watch::Sender<Progress<V>>;
type Shard<K, V> = HashMap<K, Arc<Flight<V>>>;

/// The loads in progress.
pub(crate) struct Flights<K, V> {
    shards: Box<[Mutex<Shard<K, V>>]>,
    hasher: RandomState,
}

/// What there is to do for somebody who wants a key.
pub(crate) enum Joined<K: Hash + Eq, V, T> {
    /// It is there by now.
    Ready(T),
    /// Somebody loads it.
    Waiting(watch::Receiver<Progress<V>>),
    /// Nobody does: load it, and wait for that.
    Leading(Leader<K, V>, watch::Receiver<Progress<V>>),
}

/// The duty to load a key. Dropping it loses the flight.
pub(crate) struct Leader<K: Hash + Eq, V> {
    flights: Arc<Flights<K, V>>,
    key: K,
    flight: Arc<Flight<V>>,
    ended: bool,
}

impl<K: Hash + Eq + Clone, V> Flights<K, V> {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::new() }
    }

    /// Joins the flight of a key, or leads one. Before it is led `ready` looks once more whether the
    /// key is there, since the last flight may have landed a moment ago.
    pub(crate) fn join<T>(
        self: &Arc<Self>,
        key: &K,
        ready: impl FnOnce() -> Option<T>,
    ) -> Joined<K, V, T> {
        let mut shard = self.shard(key);
        if let Some(flight) = shard.get(key) {
            return Joined::Waiting(flight.subscribe());
        }
        if let Some(ready) = ready() {
            return Joined::Ready(ready);
        }
        let (flight, receiver) = watch::channel(Progress::Flying);
        let flight = Arc::new(flight);
        shard.insert(key.clone(), Arc::clone(&flight));
        drop(shard);
        let flights = Arc::clone(self);
        Joined::Leading(Leader { flights, key: key.clone(), flight, ended: false }, receiver)
    }
}

impl<K: Hash + Eq, V> Flights<K, V> {
    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> parking_lot::MutexGuard<'_, Shard<K, V>> {
        // The remainder is below the number of shards.
        let number = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[number].lock()
    }

    /// What is being loaded for this key is not stored any more. Calls `and` in the same moment.
    pub(crate) fn void(&self, key: &K, and: impl FnOnce()) {
        let mut shard = self.shard(key);
        shard.remove(key);
        and();
    }

    /// Nothing that is being loaded is stored any more.
    pub(crate) fn void_all(&self) {
        for shard in &self.shards {
            shard.lock().clear();
        }
    }
}

impl<K: Hash + Eq, V> Leader<K, V> {
    pub(crate) fn key(&self) -> &K {
        &self.key
    }

    /// Whether anybody waits.
    pub(crate) fn is_awaited(&self) -> bool {
        self.flight.receiver_count() > 0
    }

    /// Tells all who wait, after `store` was called, unless the key was invalidated meanwhile. Yields
    /// whether it was called.
    pub(crate) fn land(&mut self, outcome: Outcome<V>, store: impl FnOnce()) -> bool {
        let counts = self.leave(store);
        self.flight.send_replace(Progress::Landed(outcome));
        counts
    }

    /// Waits until nobody waits for this flight any more, and takes it out of the table.
    pub(crate) async fn deserted(&mut self) {
        loop {
            self.flight.closed().await;
            let mut shard = self.flights.shard(&self.key);
            // Whoever joins does so under this lock.
            if self.flight.receiver_count() == 0 {
                self.ended = true;
                if shard.get(&self.key).is_some_and(|known| Arc::ptr_eq(known, &self.flight)) {
                    shard.remove(&self.key);
                }
                return;
            }
        }
    }

    /// Takes the flight out of the table if it is there still, and then calls `and` in the same moment.
    fn leave(&mut self, and: impl FnOnce()) -> bool {
        self.ended = true;
        let mut shard = self.flights.shard(&self.key);
        let counts = shard.get(&self.key).is_some_and(|known| Arc::ptr_eq(known, &self.flight));
        if counts {
            shard.remove(&self.key);
            and();
        }
        counts
    }
}

impl<K: Hash + Eq, V> Drop for Leader<K, V> {
    fn drop(&mut self) {
        if !self.ended {
            self.leave(|| ());
            self.flight.send_replace(Progress::Lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Table = Arc<Flights<u32, u32>>;

    fn lead(table: &Table) -> (Leader<u32, u32>, watch::Receiver<Progress<u32>>) {
        match table.join(&1, || None::<()>) {
            Joined::Leading(leader, receiver) => (leader, receiver),
            _ => unreachable!("nobody loads it"),
        }
    }

    fn waits(table: &Table) -> bool {
        matches!(table.join(&1, || Some(())), Joined::Waiting(_))
    }

    #[test]
    fn one_leads_and_the_others_wait() {
        let table = Table::new(Flights::new());
        let (mut leader, receiver) = lead(&table);
        assert!(waits(&table));
        let mut stored = false;
        assert!(leader.land(Ok(Some(Arc::new(7))), || stored = true) && stored);
        assert!(matches!(&*receiver.borrow(), Progress::Landed(Ok(Some(value))) if **value == 7));
        assert!(!waits(&table), "it has landed");
    }

    #[test]
    fn what_was_invalidated_meanwhile_is_not_stored() {
        let table = Table::new(Flights::new());
        let (mut old, _waiting) = lead(&table);
        table.void(&1, || ());
        let (mut new, _waiting) = lead(&table);
        assert!(!old.land(Ok(None), || unreachable!("it is old")));
        assert!(waits(&table), "the new one flies on");
        assert!(new.land(Ok(None), || ()));
        let (mut old, _waiting) = lead(&table);
        table.void_all();
        assert!(!old.land(Ok(None), || unreachable!("it is old")));
    }

    #[test]
    fn a_leader_that_is_gone_is_known_to_be() {
        let table = Table::new(Flights::new());
        let (leader, receiver) = lead(&table);
        drop(leader);
        assert!(matches!(&*receiver.borrow(), Progress::Lost));
        assert!(!waits(&table), "somebody else may lead");
    }

    #[tokio::test]
    async fn a_flight_that_nobody_waits_for_leaves_the_table() {
        let table = Table::new(Flights::new());
        let (mut leader, first) = lead(&table);
        let Joined::Waiting(second) = table.join(&1, || None::<()>) else { unreachable!() };
        drop(first);
        let mut deserted = Box::pin(leader.deserted());
        assert!(futures_pending(&mut deserted).await);
        drop(second);
        deserted.await;
        assert!(!waits(&table));
    }

    async fn futures_pending(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
        std::future::poll_fn(|task| {
            std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(task).is_pending())
        })
        .await
    }
}
