//! The level that processes share: the port, and how the cache goes on when it is away.

mod availability;
mod typed;

use std::sync::Weak;
use std::time::Duration;

use antiphon_core::{BoxError, BoxFuture};
use bytes::Bytes;

pub(crate) use typed::{Asking, Seen, Typed};

/// A level behind the one in memory, shared by the processes of a service. An adapter implements it.
///
/// What an implementation must keep:
///
/// 1. A [`Lease`] names a key as it is since its last invalidation. [`Self::fill`] does nothing unless
///    its lease is still the key's, decided in one piece with the write. So a value that was loaded
///    before an invalidation is never stored after it, whoever loaded it. This is the lease of
///    "Scaling Memcache at Facebook" (2013), section 3.2.1, without its limit on how many there are.
/// 2. [`Self::read`] that finds no value leaves a lease that lives longer than a load.
/// 3. [`Self::invalidate`] returns after the value is gone, and before that or later tells all
///    listeners of all other processes. One that does not hear of changes any more is told so as soon
///    as that is known ([`Listener::deaf`]), and that it may have missed some when it hears of all of
///    them again ([`Listener::missed`]), also once at the beginning.
/// 4. Nothing waits for ever. The cache waits for a read and a fill as long as `shared_timeout`, for an
///    invalidation two seconds, and drops the future then.
pub trait SharedLevel: Send + Sync + 'static {
    /// Looks a key up in the cache of this name.
    fn read<'a>(&'a self, cache: &'a str, key: &'a str) -> BoxFuture<'a, Result<Found, BoxError>>;

    /// Stores what was loaded since the lease was given; yields whether it was stored.
    fn fill<'a>(
        &'a self,
        cache: &'a str,
        key: &'a str,
        lease: &'a Lease,
        record: Record,
    ) -> BoxFuture<'a, Result<bool, BoxError>>;

    /// Removes values and ends the leases of their keys.
    fn invalidate<'a>(
        &'a self,
        cache: &'a str,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<(), BoxError>>;

    /// Tells this listener from now on what others invalidate in the cache of this name, until it is
    /// dropped. Does not block.
    fn listen(&self, cache: &str, listener: Weak<dyn Listener>);
}

/// The right to store a value for a key, as long as it is not invalidated. Of a text that no other
/// lease of the key ever has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease(pub String);

/// What is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The value; `None` when it is known that there is none.
    pub value: Option<Bytes>,
    /// How long it is fresh.
    pub fresh: Duration,
    /// How long it is kept after that.
    pub stale: Duration,
}

/// What was found of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// With which a new value can be stored.
    pub lease: Lease,
    /// What was stored, and the age of it.
    pub stored: Option<(Option<Bytes>, Age)>,
}

/// How old a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// It is fresh for so long.
    Fresh(Duration),
    /// It has not been fresh for so long.
    Stale(Duration),
}

/// Who is told what other processes invalidate. Calls do not block.
pub trait Listener: Send + Sync {
    /// This key was invalidated.
    fn changed(&self, key: &str);

    /// What others invalidate is not told from now on, until [`Self::missed`] is called. It is so at the
    /// beginning, too.
    fn deaf(&self);

    /// Any key may have been, and from now on all are told.
    fn missed(&self);
}
