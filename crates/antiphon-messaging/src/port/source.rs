//! A member of a group, fetching.

use antiphon_core::BoxFuture;

use super::delivery::Delivery;

/// A member of a group, fetching.
///
/// 1. `fetch(n)` yields at most `n` deliveries, and never an empty list; `fetch(0)` waits for
///    [`Fetched::Revoked`] and [`Fetched::Lost`] only.
/// 2. A delivery that is not settled when its `Source` ends or its lease is lost is delivered again.
/// 3. [`Fetched::Revoked`] comes before anybody else gets the messages of the revoked keys, and
///    the broker waits for its `done` for as long as it allows.
/// 4. [`Fetched::Lost`] is the end; what was delivered before can no longer be settled
///    ([`Settled::Stale`](crate::Settled::Stale)).
/// 5. Dropping a `Source` leaves the group at once: what it delivered is delivered again, and can
///    no longer be settled.
pub trait Source: Send + 'static {
    /// Waits for deliveries.
    ///
    /// # Cancel safety
    /// Safe: a delivery is either returned or not fetched.
    fn fetch(&mut self, credits: usize) -> BoxFuture<'_, Fetched>;

    /// Stops fetching, by the time that this returns. What was delivered can still be settled; the
    /// future completes when all of it is and the group is left. Dropping the future earlier is
    /// like dropping the source.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// What a [`Source`] yields.
#[derive(Debug)]
pub enum Fetched {
    /// Messages to handle.
    Deliveries(Vec<Delivery>),
    /// Other consumers take over keys: finish or release what is held of these lanes.
    Revoked {
        /// The lanes, as in [`Delivery::lane`].
        lanes: Vec<u32>,
        /// Dropped when everything of them is settled.
        done: tokio::sync::oneshot::Sender<()>,
    },
    /// The connection is gone; subscribe anew.
    Lost(String),
}
