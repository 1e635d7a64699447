//! One client must not take all of a server that is busy.
//!
//! A server that is nearly full refuses the calls of those clients that have more than their share in
//! progress, and goes on answering the others. Clients are counted without a table of them: by two
//! hashes in two rows of counters, of which the smaller is right unless both collide (the count-min
//! sketch of Cormode and Muthukrishnan, 2005; stochastic fair queueing knows its senders the same
//! way). So the memory is fixed, whoever comes, and there is no lock.
//!
//! A client has a share while it was seen in the last second or two, not only while it has a call in
//! progress: a modest client would otherwise find every place taken again before its next call. What
//! it leaves unused of its share is the price, at most the last fifth of the limit.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// The counters of a row. Of a hundred clients about one shares both of its counters with others.
const ROW: usize = 1_024;
/// From this part of the limit on, shares count.
const BUSY: f64 = 0.8;
/// A client is remembered for at least this long after its last call came, and less than twice that.
const PERIOD: Duration = Duration::from_secs(1);

/// The calls in progress of each client. Shared between threads by reference.
///
/// Each `Some` of [`Self::try_enter`] is answered by exactly one [`Self::leave`].
#[derive(Debug)]
pub struct Fairness {
    hashing: RandomState,
    rows: [Vec<AtomicU32>; 2],
    /// Counters of the first row that are not 0: about as many clients have calls in progress.
    clients: AtomicU32,
    origin: Instant,
    /// For each counter of the first row the period in which a call last came to it.
    last_seen: Vec<AtomicU32>,
    /// The period in the upper half, and the clients seen in it in the lower.
    period: AtomicU64,
    /// The clients seen in the period before.
    seen_before: AtomicU32,
}

/// A call in progress of a client, by its counters.
#[derive(Debug)]
#[must_use = "the call is counted until it is given back to `leave`"]
pub struct ClientCall([u16; 2]);

impl Fairness {
    /// No calls in progress.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let row = || (0..ROW).map(|_| AtomicU32::new(0)).collect();
        Self {
            hashing: RandomState::new(),
            rows: [row(), row()],
            clients: AtomicU32::new(0),
            origin: now,
            last_seen: row(),
            period: AtomicU64::new(0),
            seen_before: AtomicU32::new(0),
        }
    }

    /// Lets a call of this client in, or refuses it since the server is busy and the client has its
    /// share. `in_flight` of `limit` calls are in progress in all, without this one.
    pub fn try_enter(
        &self,
        client: impl Hash,
        in_flight: u32,
        limit: u32,
        now: Instant,
    ) -> Option<ClientCall> {
        let places = places(self.hashing.hash_one(client));
        let [first, second] = [0, 1].map(|row| &self.rows[row][usize::from(places[row])]);
        let clients = self.see(usize::from(places[0]), now);
        if f64::from(in_flight) >= BUSY * f64::from(limit)
            && first.load(Relaxed).min(second.load(Relaxed)) >= share(limit, clients)
        {
            return None;
        }
        if first.fetch_add(1, Relaxed) == 0 {
            self.clients.fetch_add(1, Relaxed);
        }
        second.fetch_add(1, Relaxed);
        Some(ClientCall(places))
    }

    /// The call has ended.
    pub fn leave(&self, call: ClientCall) {
        let [first, second] = [0, 1].map(|row| &self.rows[row][usize::from(call.0[row])]);
        if first.fetch_sub(1, Relaxed) == 1 {
            self.clients.fetch_sub(1, Relaxed);
        }
        second.fetch_sub(1, Relaxed);
    }

    /// Notes that a client came, and tells how many share, about.
    fn see(&self, place: usize, now: Instant) -> u32 {
        let periods = now.saturating_duration_since(self.origin).as_nanos() / PERIOD.as_nanos();
        // The first is 1, so that a counter that saw nobody is in none.
        let current = u32::try_from(periods).unwrap_or(u32::MAX).saturating_add(1);
        let mut seen = self.period.load(Relaxed);
        let (of, clients) = unpack(seen);
        if of < current {
            // Of the threads that find the period over, one begins the next.
            let begun = pack(current, 0);
            if self.period.compare_exchange(seen, begun, Relaxed, Relaxed).is_ok() {
                let before = if of + 1 == current { clients } else { 0 };
                self.seen_before.store(before, Relaxed);
            }
            seen = begun;
        }
        let last_seen = &self.last_seen[place];
        if last_seen.load(Relaxed) != current && last_seen.swap(current, Relaxed) != current {
            seen = self.period.fetch_add(1, Relaxed) + 1;
        }
        let (_, seen_now) = unpack(seen);
        seen_now.max(self.seen_before.load(Relaxed)).max(self.clients.load(Relaxed))
    }
}

/// The counters of a client in the two rows, out of different parts of its hash.
const fn places(hash: u64) -> [u16; 2] {
    const ROWS: u64 = ROW as u64;
    [(hash % ROWS) as u16, ((hash >> 32) % ROWS) as u16]
}

const fn pack(period: u32, clients: u32) -> u64 {
    (period as u64) << 32 | clients as u64
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of a number")]
const fn unpack(packed: u64) -> (u32, u32) {
    ((packed >> 32) as u32, packed as u32)
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
        let now = Instant::now();
        let fairness = Fairness::new(now);
        let mut calls = Vec::new();
        let mut have = vec![0; wanted.len()];
        for _ in 0..limit {
            for (client, wanted) in wanted.iter().enumerate() {
                let in_flight = u32::try_from(calls.len()).unwrap();
                if have[client] < *wanted && in_flight < limit {
                    let call = fairness.try_enter(client, in_flight, limit, now);
                    have[client] += u32::from(call.is_some());
                    calls.extend(call);
                }
            }
        }
        calls.into_iter().for_each(|call| fairness.leave(call));
        assert!(nothing_is_counted(&fairness));
        have
    }

    fn nothing_is_counted(fairness: &Fairness) -> bool {
        fairness.clients.load(Relaxed) == 0
            && fairness.rows.iter().flatten().all(|count| count.load(Relaxed) == 0)
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
        assert!(have[0] >= 70, "{have:?}");
    }

    #[test]
    fn a_client_that_was_alone_makes_room_for_one_that_comes_now_and_then() {
        let start = Instant::now();
        let fairness = Fairness::new(start);
        let greedy = |in_flight, now| fairness.try_enter("greedy", in_flight, 100, now);
        let mut calls: Vec<_> = (0..100).filter_map(|n| greedy(n, start)).collect();
        assert_eq!(calls.len(), 100);
        let late = fairness.try_enter("modest", 99, 100, start).unwrap();
        fairness.leave(late);
        // As its calls end, the first gets no new ones in the last fifth, though the other has none
        // in progress.
        for _ in 0..20 {
            let in_flight = u32::try_from(calls.len()).unwrap() - 1;
            assert!(greedy(in_flight, start).is_none(), "{in_flight}");
            fairness.leave(calls.pop().unwrap());
        }
        fairness.leave(calls.pop().unwrap());
        calls.extend(greedy(79, start));
        assert_eq!(calls.len(), 80);
        // Whoever has not come for two seconds has no share.
        let second = Duration::from_secs(1);
        assert!(greedy(99, start + second).is_none());
        assert!(greedy(99, start + 2 * second).is_some());
    }

    #[test]
    fn a_server_with_room_refuses_nobody() {
        let now = Instant::now();
        let fairness = Fairness::new(now);
        let calls: Vec<_> = (0..79).map(|n| fairness.try_enter(n % 2, n, 100, now)).collect();
        assert!(calls.iter().all(Option::is_some));
    }

    #[test]
    fn threads_leave_no_counter_behind() {
        let start = Instant::now();
        let fairness = Fairness::new(start);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let fairness = &fairness;
                scope.spawn(move || {
                    for n in 0..5_000 {
                        let now = start + Duration::from_millis(u64::from(n));
                        let call = fairness.try_enter((thread + n) % 3, n % 100, 100, now);
                        call.into_iter().for_each(|call| fairness.leave(call));
                    }
                });
            }
        });
        assert!(nothing_is_counted(&fairness));
    }
}
