//! The port of whoever takes registrations: what adapters implement so that services are found.

use antiphon_core::BoxFuture;
use tokio::sync::watch;

use crate::{Instance, RegistryError, Standing};

/// Takes registrations. What it takes is held by a lease, which ends by itself when the process does.
pub trait Registrar: Send + Sync + 'static {
    /// A place for one instance of `service`; nothing is written yet.
    fn entry(&self, service: &str) -> Box<dyn Entry>;
}

/// The registration of one instance, as one registry does it. The retries are not its business.
///
/// 1. Two entries of one service with different addresses are two instances; with the same address
///    the later one replaces the earlier, whatever became of who wrote that.
/// 2. Whoever stops holding it is gone from the registry after at most the time of the lease.
pub trait Entry: Send {
    /// Writes the instance, over what this entry wrote before, says so by [`Held::yes`], and keeps
    /// its lease alive. Returns only when that is over, and why.
    ///
    /// A lease that the registry does not know any more is over; one that merely could not be renewed
    /// is over when it may have run out.
    ///
    /// # Cancel safety
    /// Dropping the future leaves what is written where it is; a later call goes on from there.
    fn hold<'a>(
        &'a mut self,
        instance: &'a Instance,
        held: &'a Held,
    ) -> BoxFuture<'a, RegistryError>;

    /// Removes what this entry wrote. Nothing that is there is success as well; what somebody else
    /// wrote since stays.
    ///
    /// # Errors
    /// The registry does not answer, or refuses. The lease ends by itself.
    ///
    /// # Cancel safety
    /// It may or may not have been removed; calling again is right.
    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>>;
}

/// Where an entry says that it is written.
#[derive(Debug)]
pub struct Held(pub(crate) watch::Sender<Standing>);

/// Where that is heard, for those who hold an entry without a [`Registration`](crate::Registration).
#[derive(Debug)]
pub struct Written(watch::Receiver<Standing>);

impl Written {
    /// Waits until it is written.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost.
    pub async fn yes(mut self) {
        // An error means that nobody will say so any more.
        if self.0.wait_for(|standing| matches!(standing, Standing::Held)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Held {
    /// A pair of both.
    #[must_use]
    pub fn new() -> (Self, Written) {
        let (sender, receiver) = watch::channel(Standing::Missing { trouble: None });
        (Self(sender), Written(receiver))
    }

    /// Others can see the instance now.
    pub fn yes(&self) {
        self.0.send_if_modified(|standing| {
            let news = !matches!(standing, Standing::Held);
            *standing = Standing::Held;
            news
        });
    }
}
