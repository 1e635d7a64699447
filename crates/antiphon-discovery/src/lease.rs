//! When a lease is renewed, and when it may be over.
//!
//! A lease counts from the moment when its renewal was asked for, not from the answer: the registry
//! cannot have begun to count later. So whoever holds it knows of its end no later than the registry.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::RegistryError;

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

    /// Keeps it alive: calls `renew`, with how long that may take, every third of its time, and every
    /// twelfth after a failure. Returns only when it is over, and why: `renew` says that it is
    /// [lost](RegistryError::Lost), or has not succeeded until the registry may have given it up.
    ///
    /// One that may be over already, as after an outage, is renewed at once, and over when that fails.
    ///
    /// # Cancel safety
    /// Safe: a later call goes on with what was renewed.
    pub async fn keep<F>(&mut self, mut renew: impl FnMut(Duration) -> F + Send) -> RegistryError
    where
        F: Future<Output = Result<(), RegistryError>> + Send,
    {
        let mut trouble = None;
        loop {
            sleep_until(self.renew_at).await;
            let asked = Instant::now();
            if asked >= self.end()
                && let Some(error) = trouble
            {
                return error;
            }
            match renew(self.limit(asked)).await {
                Ok(()) => {
                    self.renewed(asked);
                    trouble = None;
                }
                Err(error @ RegistryError::Lost { .. }) => return error,
                Err(error) => {
                    tracing::debug!(error = error.chain(), "a lease is not renewed yet");
                    self.failed(Instant::now());
                    trouble = Some(error);
                }
            }
        }
    }

    /// A renewal that was asked for at `asked` has succeeded: the next is due a third of its time
    /// later, so that two more can fail.
    fn renewed(&mut self, asked: Instant) {
        *self = Self::granted(self.time, asked);
    }

    /// A renewal has failed: the next is due a twelfth of its time later, or at its end, of which its
    /// holder must hear in time.
    fn failed(&mut self, now: Instant) {
        self.renew_at = (now + self.time / 12).min(self.end());
    }

    /// How long a renewal at `asked` may take: not past its end, where that is still to come.
    fn limit(&self, asked: Instant) -> Duration {
        let (third, left) = (self.time / 3, self.end().saturating_duration_since(asked));
        if left.is_zero() { third } else { third.min(left) }
    }

    /// From when on the registry may have given it up.
    fn end(&self) -> Instant {
        self.renewed + self.time
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use parking_lot::Mutex;
    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// How a renewal goes.
    #[derive(Clone, Copy, Debug)]
    enum Renewal {
        Done,
        Lost,
        Failed,
        /// Nobody answers within the limit.
        Hangs,
    }
    use Renewal::{Done, Failed, Hangs, Lost};

    /// Keeps a lease of 12 s that was asked for `old` seconds ago, with renewals that go like this,
    /// the last one on and on. Yields at which seconds from now a renewal began and how many it had,
    /// at which second it was over, and why.
    async fn kept(old: u64, renewals: &[Renewal]) -> (Vec<(u64, u64)>, u64, String) {
        sleep(100 * SECOND).await;
        let now = Instant::now();
        let mut lease = Lease::granted(12 * SECOND, now - Duration::from_secs(old));
        let (asked, left) = (Mutex::new(Vec::new()), Mutex::new(VecDeque::from_iter(renewals)));
        let error = lease.keep(async |limit: Duration| {
            asked.lock().push((now.elapsed().as_secs(), limit.as_secs()));
            let renewal = {
                let mut left = left.lock();
                if left.len() > 1 { left.pop_front() } else { left.front().copied() }
            };
            match renewal.unwrap() {
                Done => Ok(()),
                Lost => Err(RegistryError::lost("nobody knows it")),
                Failed => Err(RegistryError::silent("no leader")),
                Hangs => {
                    sleep(limit).await;
                    Err(RegistryError::silent("no answer"))
                }
            }
        });
        let words = error.await.to_string();
        (asked.into_inner(), now.elapsed().as_secs(), words)
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_renewed_every_third_of_its_time_until_it_is_lost() {
        let (asked, over, why) = kept(0, &[Done, Done, Lost]).await;
        assert_eq!(asked, [(4, 4), (8, 4), (12, 4)]);
        assert_eq!((over, why.as_str()), (12, "nobody knows it"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_renewal_is_tried_again_every_twelfth_of_its_time() {
        let (asked, over, _) = kept(0, &[Failed, Failed, Done, Lost]).await;
        assert_eq!(asked, [(4, 4), (5, 4), (6, 4), (10, 4)]);
        assert_eq!(over, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn its_end_is_told_when_it_is_there_and_not_later() {
        let (asked, over, why) = kept(0, &[Failed]).await;
        assert_eq!(asked.last(), Some(&(11, 1)));
        assert_eq!((over, why.as_str()), (12, "no leader"));
        let (asked, over, why) = kept(0, &[Done, Hangs]).await;
        assert_eq!(asked, [(4, 4), (8, 4), (13, 3)]);
        assert_eq!((over, why.as_str()), (16, "no answer"));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_may_be_over_is_tried_once() {
        let (asked, over, _) = kept(60, &[Done, Lost]).await;
        assert_eq!((asked, over), (vec![(0, 4), (4, 4)], 4));
        let (asked, over, why) = kept(60, &[Hangs]).await;
        assert_eq!((asked, over, why.as_str()), (vec![(0, 4)], 4, "no answer"));
    }
}
