//! So many calls a second, and a few more at once.
//!
//! The generic cell rate algorithm (ITU-T I.371): one number, the time at which a steady stream of
//! calls would have used up what was let in. It needs no timer, no count and no refilling, and an
//! idle limit is no different from a new one, so a table of limits can forget what is idle.
//!
//! The `governor` crate has the algorithm, too. It asks its own clock, where everything here is told
//! the time, and its table of keys grows with what strangers send.
//!
//! Several instances can share a limit: a [`RateStore`] decides about batches of calls, a [`Share`] is
//! what an instance has of them, and [`Outage`] says when it is alone.

mod outage;
mod share;
mod store;

pub use outage::{Outage, Way};
pub use share::{Entry, LEASE, Share};
pub use store::{RateStore, Taken};

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The parts of a table, each with a lock of its own.
const SHARDS: usize = 16;
/// How long a full part of a table is not looked through again, at most: it costs a millisecond.
const SWEEP_INTERVAL: Duration = Duration::from_millis(200);

/// How much is let in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateSettings {
    /// Calls per second; what is not more than 0 counts as one in a year.
    pub per_second: f64,
    /// Calls that may come at once after a pause; at least 1.
    pub burst: u32,
}

impl RateSettings {
    /// Decides about a call at `now`, in nanoseconds after any origin. `used_up` is what the last
    /// call that was let in left, 0 at first: the result is what this one leaves.
    ///
    /// # Errors
    /// Over the limit: in how many nanoseconds a call would be let in.
    pub fn step(&self, used_up: u64, now: u64) -> Result<u64, u64> {
        let interval = self.interval_nanos();
        let next = self.bounded(used_up, now).saturating_add(interval);
        match next.saturating_sub(now).checked_sub(self.ahead_nanos()) {
            None | Some(0) => Ok(next),
            Some(wait) => Err(wait),
        }
    }

    /// Decides about up to `wanted` calls at once, at `now`: what `used_up` becomes, how many are let
    /// in, and after how much time another one would be. Times as for [`Self::step`].
    #[must_use]
    pub fn take(&self, used_up: u64, now: u64, wanted: u32) -> (u64, Taken) {
        let (interval, ahead) = (self.interval_nanos(), self.ahead_nanos());
        let used_up = self.bounded(used_up, now);
        let fit = ahead.saturating_sub(used_up - now) / interval;
        let granted = wanted.min(u32::try_from(fit).unwrap_or(u32::MAX));
        let used_up = used_up.saturating_add(interval.saturating_mul(u64::from(granted)));
        let next = used_up.saturating_add(interval).saturating_sub(now);
        let wait = Duration::from_nanos(next.saturating_sub(ahead));
        (used_up, Taken { granted, wait })
    }

    /// What was used up, as far as this rate can have let it in: a slower one that was in force before,
    /// or a clock that was set back, must not refuse for longer.
    fn bounded(&self, used_up: u64, now: u64) -> u64 {
        used_up.clamp(now, now.saturating_add(self.ahead_nanos()))
    }

    /// How far ahead of the steady stream a burst may be: after so much time any key is idle.
    fn ahead_nanos(&self) -> u64 {
        self.interval_nanos().saturating_mul(u64::from(self.burst.max(1)))
    }

    /// The time between two calls of a steady stream: at least a nanosecond, at most a year.
    #[must_use]
    pub fn interval(&self) -> Duration {
        const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);
        let interval = Duration::try_from_secs_f64(1.0 / self.per_second.max(0.0));
        interval.unwrap_or(YEAR).clamp(Duration::from_nanos(1), YEAR)
    }

    fn interval_nanos(&self) -> u64 {
        nanos(self.interval())
    }
}

/// One limit for all calls that come to it. Shared between threads by reference, without a lock.
#[derive(Debug)]
pub struct RateLimit {
    settings: RateSettings,
    origin: Instant,
    used_up: AtomicU64,
}

impl RateLimit {
    /// A limit that has let in nothing yet.
    #[must_use]
    pub fn new(settings: RateSettings, now: Instant) -> Self {
        Self { settings, origin: now, used_up: AtomicU64::new(0) }
    }

    /// Lets a call in.
    ///
    /// # Errors
    /// Over the limit: after how much time to come again.
    pub fn check(&self, now: Instant) -> Result<(), Duration> {
        let now = nanos(now.saturating_duration_since(self.origin));
        let mut seen = self.used_up.load(Relaxed);
        loop {
            let next = self.settings.step(seen, now).map_err(Duration::from_nanos)?;
            match self.used_up.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(now_there) => seen = now_there,
            }
        }
    }
}

/// One limit for each key (a client, a tenant, an address), for as many keys as fit.
///
/// When the table is full of keys that are all in use, all further keys share one limit: strangers who
/// make up keys get little, and no memory.
#[derive(Debug)]
pub struct KeyedRateLimit {
    settings: RateSettings,
    origin: Instant,
    hashing: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    keys_per_shard: usize,
    others: RateLimit,
}

/// Some of the keys, by their hash.
#[derive(Debug, Default)]
struct Shard {
    used_up: HashMap<u64, u64>,
    /// When it is worth looking again for keys that are idle: else every made-up key would cost a
    /// walk through all others.
    sweep_at: u64,
}

impl KeyedRateLimit {
    /// For at most `keys_max` keys at once.
    #[must_use]
    pub fn new(settings: RateSettings, keys_max: usize, now: Instant) -> Self {
        Self {
            settings,
            origin: now,
            hashing: RandomState::new(),
            shards: Default::default(),
            keys_per_shard: keys_max.div_ceil(SHARDS),
            others: RateLimit::new(settings, now),
        }
    }

    /// Lets a call of this key in.
    ///
    /// # Errors
    /// Over the limit of the key: after how much time to come again.
    pub fn check(&self, key: impl Hash, now: Instant) -> Result<(), Duration> {
        // Keys are kept by their hash, which takes no copy of them. It cannot be foreseen.
        let key = self.hashing.hash_one(key);
        let since = nanos(now.saturating_duration_since(self.origin));
        let mut shard = self.shards[usize::try_from(key).unwrap_or(0) % SHARDS].lock();
        let is_full = |shard: &Shard| shard.used_up.len() >= self.keys_per_shard;
        if is_full(&shard) && !shard.used_up.contains_key(&key) {
            if since >= shard.sweep_at {
                // What is not used up is as good as new.
                shard.used_up.retain(|_, used_up| *used_up > since);
                let pause = self.settings.ahead_nanos().min(nanos(SWEEP_INTERVAL));
                shard.sweep_at = since.saturating_add(pause);
            }
            if is_full(&shard) {
                drop(shard);
                return self.others.check(now);
            }
        }
        let used_up = shard.used_up.entry(key).or_insert(0);
        *used_up = self.settings.step(*used_up, since).map_err(Duration::from_nanos)?;
        Ok(())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const TEN: RateSettings = RateSettings { per_second: 10.0, burst: 3 };

    #[test]
    fn a_burst_is_let_in_and_then_one_each_interval() {
        let start = Instant::now();
        let limit = RateLimit::new(TEN, start);
        for _ in 0..3 {
            assert_eq!(limit.check(start), Ok(()));
        }
        assert_eq!(limit.check(start), Err(100 * MS));
        assert_eq!(limit.check(start + 60 * MS), Err(40 * MS));
        assert_eq!(limit.check(start + 100 * MS), Ok(()));
        assert_eq!(limit.check(start + 100 * MS), Err(100 * MS));
        let much_later = start + Duration::from_secs(60);
        let let_in = (0..10).filter(|_| limit.check(much_later).is_ok()).count();
        assert_eq!(let_in, 3, "a pause does not save up more than the burst");
    }

    #[test]
    fn the_rate_is_kept_by_threads_together() {
        let start = Instant::now();
        let limit = RateLimit::new(RateSettings { per_second: 1_000.0, burst: 50 }, start);
        let let_in: usize = std::thread::scope(|scope| {
            let work = || (0..2_000).filter(|n| limit.check(start + MS * *n / 2).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!((1_000..=1_050).contains(&let_in), "{let_in}");
    }

    #[test]
    fn settings_without_sense_let_in_next_to_nothing_and_do_not_panic() {
        for per_second in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE, f64::MAX] {
            let settings = RateSettings { per_second, burst: 0 };
            assert!(settings.step(0, 5).is_ok(), "{per_second}");
            let second = settings.step(settings.step(0, 5).unwrap(), 5);
            assert!(second.is_err(), "{per_second}");
        }
        let endless = RateSettings { burst: u32::MAX, ..TEN };
        assert_eq!(endless.step(u64::MAX - 1, 0), Err(nanos(100 * MS)));
        assert_eq!(endless.take(u64::MAX - 1, 0, 1).1.wait, 100 * MS);
    }

    #[test]
    fn a_batch_is_let_in_as_far_as_it_fits() {
        let nanos = |ms: u64| ms * 1_000_000;
        // used up, now, wanted; used up then, granted, wait; all times in ms.
        for (used_up, now, wanted, then, granted, wait) in [
            (0, 1_000, 1, 1_100, 1, 0),
            (0, 1_000, 3, 1_300, 3, 100),
            (0, 1_000, 9, 1_300, 3, 100),
            (1_300, 1_000, 9, 1_300, 0, 100),
            (1_300, 1_060, 9, 1_300, 0, 40),
            (1_300, 1_100, 9, 1_400, 1, 100),
            (1_300, 1_250, 9, 1_500, 2, 50),
            (1_300, 9_000, 2, 9_200, 2, 0),
            (1_300, 1_000, 0, 1_300, 0, 100),
        ] {
            let taken = TEN.take(nanos(used_up), nanos(now), wanted);
            let expected = Taken { granted, wait: MS * wait };
            assert_eq!(taken, (nanos(then), expected), "{used_up} {now} {wanted}");
        }
        let endless = RateSettings { per_second: f64::INFINITY, burst: u32::MAX };
        assert_eq!(endless.take(0, 0, u32::MAX).1.granted, u32::MAX);
        assert_eq!(RateSettings { per_second: 0.0, burst: 0 }.take(0, 0, 5).1.granted, 1);
    }

    #[test]
    fn one_by_one_or_in_a_batch_is_the_same() {
        let mut used_up = 7_000_000;
        for now in (0..2_000).map(|ms| ms * 1_000_000) {
            let alone = TEN.step(used_up, now);
            let (then, taken) = TEN.take(used_up, now, 1);
            assert_eq!(alone.is_ok(), taken.granted == 1);
            match alone {
                Ok(next) => assert_eq!(then, next),
                Err(wait) => assert_eq!(taken.wait, Duration::from_nanos(wait)),
            }
            used_up = then;
        }
    }

    #[test]
    fn each_key_has_its_own_limit() {
        let start = Instant::now();
        let limit = KeyedRateLimit::new(TEN, 1_000, start);
        let let_in = |key: &str| (0..10).filter(|_| limit.check(key, start).is_ok()).count();
        assert_eq!((let_in("one"), let_in("other"), let_in("one")), (3, 3, 0));
    }

    #[test]
    fn made_up_keys_take_neither_memory_nor_the_limit_of_others() {
        let start = Instant::now();
        let limit = KeyedRateLimit::new(TEN, 160, start);
        let kept = || limit.shards.iter().map(|shard| shard.lock().used_up.len()).sum::<usize>();
        assert_eq!(limit.check("regular", start), Ok(()));
        let let_in = (0..100_000_u32).filter(|key| limit.check(key, start).is_ok()).count();
        assert!(kept() <= 160);
        assert_eq!(let_in, 159 + 3, "one for each key that fits, and a burst for all the others");
        assert_eq!(limit.check("regular", start), Ok(()));
        // Later the table has room again: what is idle is forgotten.
        let later = start + Duration::from_secs(1);
        let let_in = (200_000..300_000_u32).filter(|key| limit.check(key, later).is_ok()).count();
        assert!(let_in > 100 && kept() <= 160, "{let_in}");
    }

    #[test]
    fn what_is_idle_makes_room_long_before_a_burst_would_be_used_up() {
        let start = Instant::now();
        let calm = RateSettings { per_second: 0.01, burst: 100 };
        // One key in each part of the table.
        let limit = KeyedRateLimit::new(calm, SHARDS, start);
        let let_in = |round: u32, now| {
            (0..1_000_u32).filter(|key| limit.check((round, key), now).is_ok()).count()
        };
        assert_eq!(let_in(1, start), SHARDS + 100);
        // A hundred seconds make a key that called once idle, and let two more of the others in.
        assert_eq!(let_in(2, start + Duration::from_secs(200)), SHARDS + 2);
    }
}
