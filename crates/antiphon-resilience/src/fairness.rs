//! One client must not take all of a server that is busy.
//!
//! A server that is nearly full refuses the calls of those clients that have more than their share in
//! progress, and goes on answering the others. Clients are counted without a table of them: by two
//! hashes in two rows of counters, of which the smaller is right unless both collide (the count-min
//! sketch of Cormode and Muthukrishnan, 2005; stochastic fair queueing knows its senders the same
//! way). So the memory is fixed, whoever comes, and there is no lock.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The counters of a row. Of a hundred clients about one shares both of its counters with others.
const ROW: usize = 1_024;
/// From this part of the limit on, shares count.
const BUSY: f64 = 0.7;

/// The calls in progress of each client. Shared between threads by reference.
#[derive(Debug)]
pub struct Fairness {
    hashing: RandomState,
    rows: [Vec<AtomicU32>; 2],
    /// Counters of the first row that are not 0: about as many clients have calls in progress.
    clients: AtomicU32,
}

/// A call in progress of a client. It has ended when this is dropped.
#[derive(Debug)]
#[must_use = "the call is counted as long as this lives"]
pub struct ClientCall {
    fairness: Arc<Fairness>,
    places: [usize; 2],
}

impl Fairness {
    /// No calls in progress.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let row = || (0..ROW).map(|_| AtomicU32::new(0)).collect();
        Arc::new(Self {
            hashing: RandomState::new(),
            rows: [row(), row()],
            clients: AtomicU32::new(0),
        })
    }

    /// Lets a call of this client in, or refuses it since the server is busy and the client has its
    /// share. `in_flight` of `limit` calls are in progress in all.
    #[must_use]
    pub fn try_enter(
        self: &Arc<Self>,
        client: impl Hash,
        in_flight: u32,
        limit: u32,
    ) -> Option<ClientCall> {
        let hash = self.hashing.hash_one(client);
        let places = [hash, hash >> 32].map(|part| usize::try_from(part).unwrap_or(0) % ROW);
        let [first, second] = [0, 1].map(|row| self.rows[row][places[row]].load(Relaxed));
        let clients = self.clients.load(Relaxed) + u32::from(first == 0);
        if f64::from(in_flight) >= BUSY * f64::from(limit)
            && first.min(second) >= share(limit, clients)
        {
            return None;
        }
        if self.rows[0][places[0]].fetch_add(1, Relaxed) == 0 {
            self.clients.fetch_add(1, Relaxed);
        }
        self.rows[1][places[1]].fetch_add(1, Relaxed);
        Some(ClientCall { fairness: Arc::clone(self), places })
    }

    /// How many clients have calls in progress, about.
    #[must_use]
    pub fn clients(&self) -> u32 {
        self.clients.load(Relaxed)
    }
}

impl Drop for ClientCall {
    fn drop(&mut self) {
        let rows = &self.fairness.rows;
        if rows[0][self.places[0]].fetch_sub(1, Relaxed) == 1 {
            self.fairness.clients.fetch_sub(1, Relaxed);
        }
        rows[1][self.places[1]].fetch_sub(1, Relaxed);
    }
}

/// How many calls one of so many clients may have in progress; always one.
fn share(limit: u32, clients: u32) -> u32 {
    limit.div_ceil(clients.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients that try to have so many calls in progress each, in turn, until nothing changes.
    fn fill(wanted: &[u32], limit: u32) -> Vec<u32> {
        let fairness = Fairness::new();
        let mut calls = Vec::new();
        let mut have = vec![0; wanted.len()];
        for _ in 0..limit {
            for (client, wanted) in wanted.iter().enumerate() {
                let in_flight = calls.len() as u32;
                if have[client] < *wanted && in_flight < limit {
                    let call = fairness.try_enter(client, in_flight, limit);
                    have[client] += u32::from(call.is_some());
                    calls.extend(call);
                }
            }
        }
        drop(calls);
        assert_eq!(fairness.clients(), 0);
        assert!(fairness.rows.iter().flatten().all(|count| count.load(Relaxed) == 0));
        have
    }

    #[test]
    fn a_client_alone_may_have_everything() {
        assert_eq!(fill(&[1_000], 100), [100]);
    }

    #[test]
    fn two_clients_that_want_everything_get_half_each() {
        assert_eq!(fill(&[1_000, 1_000], 100), [50, 50]);
    }

    #[test]
    fn small_clients_get_what_they_want_beside_a_large_one() {
        let have = fill(&[1_000, 3, 3, 3], 100);
        assert_eq!(have[1..], [3, 3, 3]);
        assert!(have[0] >= 60, "{have:?}");
    }

    #[test]
    fn a_client_that_filled_the_server_leaves_room_for_one_that_comes_later() {
        let fairness = Fairness::new();
        let mut greedy: Vec<_> =
            (0..100).filter_map(|n| fairness.try_enter("greedy", n, 100)).collect();
        assert_eq!(greedy.len(), 100);
        let late = fairness.try_enter("late", 99, 100);
        assert!(late.is_some());
        // As its calls end, the first gets no new ones before it is down to its half.
        for _ in 0..50 {
            assert!(fairness.try_enter("greedy", 99, 100).is_none());
            greedy.pop();
        }
        assert!(fairness.try_enter("greedy", 99, 100).is_none(), "it has its half");
        greedy.pop();
        assert!(fairness.try_enter("greedy", 99, 100).is_some());
    }

    #[test]
    fn a_server_with_room_refuses_nobody() {
        let fairness = Fairness::new();
        let calls: Vec<_> = (0..69).map(|n| fairness.try_enter("one", n, 100)).collect();
        assert!(calls.iter().all(Option::is_some));
    }

    #[test]
    fn threads_leave_no_counter_behind() {
        let fairness = Fairness::new();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let fairness = &fairness;
                scope.spawn(move || {
                    for n in 0..5_000 {
                        drop(fairness.try_enter((thread + n) % 3, n % 100, 100));
                    }
                });
            }
        });
        assert_eq!(fairness.clients(), 0);
    }
}
