//! The end of the process as a value that is passed around.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Finish what was begun, until this moment.
    Draining(Instant),
    /// Stop now.
    Cut,
}

/// Asks everything that holds the matching [`Shutdown`] to end. Dropping it means [`Self::cut`].
#[derive(Debug)]
pub struct ShutdownHandle(watch::Sender<Phase>);

/// Tells when to begin draining, and by when to be done. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<Phase>);

impl ShutdownHandle {
    /// A new pair.
    #[must_use]
    pub fn new() -> (Self, Shutdown) {
        let (sender, receiver) = watch::channel(Phase::Running);
        (Self(sender), Shutdown(receiver))
    }

    /// Begins the drain: finish what was begun within `within`. A later call never undoes a cut.
    pub fn drain(&self, within: Duration) {
        self.0.send_if_modified(|phase| {
            let running = *phase == Phase::Running;
            if running {
                *phase = Phase::Draining(Instant::now() + within);
            }
            running
        });
    }

    /// Stops everything now.
    pub fn cut(&self) {
        self.0.send_replace(Phase::Cut);
    }
}

impl Shutdown {
    /// Whether draining has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() != Phase::Running || self.0.has_changed().is_err()
    }

    /// By when to be done; `None` while running.
    #[must_use]
    pub fn drain_deadline(&self) -> Option<Instant> {
        match *self.0.borrow() {
            Phase::Running => None,
            Phase::Draining(until) => Some(until),
            Phase::Cut => Some(Instant::now()),
        }
    }

    /// Completes when draining begins.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when the future is dropped.
    pub async fn draining(&self) {
        // An error means that the handle is gone, which is the end as well.
        let _ = self.0.clone().wait_for(|phase| *phase != Phase::Running).await;
    }

    /// Completes when everything must stop: the drain time is over, or the cut came.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when the future is dropped.
    pub async fn cut(&self) {
        let mut phase = self.0.clone();
        loop {
            let now = *phase.borrow_and_update();
            let changed = phase.changed();
            match now {
                Phase::Cut => return,
                Phase::Running => {
                    if changed.await.is_err() {
                        return;
                    }
                }
                Phase::Draining(until) => match tokio::time::timeout_at(until, changed).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return,
                },
            }
        }
    }

    /// Runs `work` until it is done or draining begins; `None` means that draining came first.
    ///
    /// # Cancel safety
    /// `work` is dropped when draining begins, so it must itself be safe to cancel.
    pub async fn unless_draining<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.draining() => None,
            done = work => Some(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_cut_comes_when_the_drain_time_is_over() {
        let (handle, shutdown) = ShutdownHandle::new();
        assert!(!shutdown.is_draining());
        handle.drain(Duration::from_secs(5));
        shutdown.draining().await;
        let begun = Instant::now();
        shutdown.cut().await;
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_ends_the_drain_early_and_is_final() {
        let (handle, shutdown) = ShutdownHandle::new();
        handle.cut();
        handle.drain(Duration::from_secs(5));
        shutdown.cut().await;
        assert!(shutdown.is_draining());
        assert_eq!(shutdown.unless_draining(std::future::pending::<()>()).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_handle_is_an_end() {
        let (handle, shutdown) = ShutdownHandle::new();
        drop(handle);
        shutdown.draining().await;
        shutdown.cut().await;
        assert!(shutdown.is_draining());
    }
}
