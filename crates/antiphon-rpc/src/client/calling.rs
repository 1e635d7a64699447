//! Whether anybody calls a target. Its connections are kept as long as that is so.
//!
//! It is one answer for all instances: one that has had no call for long may have some soon, when
//! others fail or there is more to do, and must not be connected to only then.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use tokio::sync::watch;

/// Nobody has called yet, or for long.
const REST: u8 = 0;
/// Nobody has called since it was last looked.
const QUIET: u8 = 1;
/// Somebody has.
const CALLED: u8 = 2;

/// Whether anybody calls, told to whoever [subscribes](Self::subscribe).
#[derive(Debug)]
pub(super) struct Calling {
    lately: AtomicU8,
    told: watch::Sender<bool>,
}

impl Calling {
    /// Nobody calls yet.
    pub(super) fn new() -> Self {
        Self { lately: AtomicU8::new(REST), told: watch::Sender::new(false) }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.told.subscribe()
    }

    /// Somebody calls.
    pub(super) fn note(&self) {
        // Nearly always it is known already, and a line of the cache need not change hands.
        if self.lately.load(Relaxed) != CALLED && self.lately.swap(CALLED, Relaxed) == REST {
            self.tell();
        }
    }

    /// Looks, now and then: between two looks without a call nobody calls any more.
    pub(super) fn look(&self) {
        let (from, to) = match self.lately.load(Relaxed) {
            CALLED => (CALLED, QUIET),
            _ => (QUIET, REST),
        };
        // Where it has changed since, somebody called.
        let changed = self.lately.compare_exchange(from, to, Relaxed, Relaxed);
        if changed.is_ok() && to == REST {
            self.tell();
        }
    }

    /// What is told is read under the lock of the channel, so that the last to tell tells what is true.
    fn tell(&self) {
        self.told.send_if_modified(|told| {
            let now = self.lately.load(Relaxed) != REST;
            std::mem::replace(told, now) != now
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_rests_when_nobody_calls_from_one_look_to_the_next() {
        let calling = Calling::new();
        let told = calling.subscribe();
        let is_told = || *told.borrow();
        calling.look();
        assert!(!is_told());
        for _ in 0..3 {
            calling.note();
            assert!(is_told());
            calling.look();
            assert!(is_told(), "there was a call");
            calling.note();
            calling.look();
            assert!(is_told(), "and another one");
            calling.look();
            assert!(!is_told());
        }
    }

    #[test]
    fn what_is_told_last_is_true_however_calls_and_looks_meet() {
        for _ in 0..2_000 {
            let calling = Calling::new();
            calling.note();
            calling.look();
            std::thread::scope(|scope| {
                scope.spawn(|| calling.look());
                scope.spawn(|| calling.note());
            });
            let rests = calling.lately.load(Relaxed) == REST;
            assert_eq!(*calling.subscribe().borrow(), !rests);
        }
    }
}
