//! When a lease is renewed, and when it may be over.
//!
//! A lease counts from the moment when its renewal was asked for, not from the answer: the registry
//! cannot have begun to count later. So whoever holds it knows of its end no later than the registry.

use std::time::Duration;

use tokio::time::Instant;

/// A lease as its holder sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    time: Duration,
    renewed: Instant,
    renew_at: Instant,
}

impl Lease {
    /// A lease of this time that was asked for at `asked`.
    #[must_use]
    pub fn granted(time: Duration, asked: Instant) -> Self {
        Self { time, renewed: asked, renew_at: asked + time / 3 }
    }

    /// A renewal that was asked for at `asked` has succeeded: the next is due a third of its time
    /// later, so that two more can fail.
    pub fn renewed(&mut self, asked: Instant) {
        *self = Self::granted(self.time, asked);
    }

    /// A renewal has failed: the next is due a twelfth of its time later.
    pub fn failed(&mut self, now: Instant) {
        self.renew_at = now + self.time / 12;
    }

    /// When the next renewal is due.
    #[must_use]
    pub const fn renew_at(&self) -> Instant {
        self.renew_at
    }

    /// How long one renewal may take.
    #[must_use]
    pub fn renewal_limit(&self) -> Duration {
        self.time / 3
    }

    /// Whether the registry may have given it up.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.renewed + self.time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn it_is_renewed_in_time_and_over_when_it_must_be() {
        let begun = Instant::now();
        let mut lease = Lease::granted(12 * SECOND, begun);
        assert_eq!(lease.renew_at(), begun + 4 * SECOND);
        lease.renewed(begun + 4 * SECOND);
        assert_eq!(lease.renew_at(), begun + 8 * SECOND);
        lease.failed(begun + 9 * SECOND);
        assert_eq!(lease.renew_at(), begun + 10 * SECOND);
        assert!(!lease.is_over(begun + 15 * SECOND));
        assert!(lease.is_over(begun + 16 * SECOND));
    }
}
