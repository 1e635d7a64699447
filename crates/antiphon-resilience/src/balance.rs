//! Which of a service's instances a call goes to.
//!
//! A client keeps one [`Load`] per instance, and one [`Roster`] over all of them: an immutable
//! snapshot in which everything that does not depend on the single call is worked out already — who
//! may be picked, by which weights, where each stands on the ring. A pick then happens in the
//! caller's task. It takes no lock, allocates nothing, awaits nothing, and looks at a handful of
//! instances however many there are.
//!
//! ```text
//!  membership or standing changes ──► Roster::new / Roster::refreshed ──► shared with all callers
//!  call ──► Roster::pick ──► InFlight::begin ──► … ──► InFlight::answered / failed ──► dropped
//! ```
//!
//! What always holds:
//!
//! * An instance that is [`Standing::Away`] is never picked, not even by a roster that was built
//!   before it went away: the standing is read again at the pick.
//! * One that is [`Standing::Ejected`] is picked only in panic, see [`Scope::Panic`].
//! * One that this call has tried already is picked only when there is no other.
//! * What a caller itself gives up is not held against the instance, and is in flight no longer.

mod ewma;
mod hash;
mod load;
mod pick;
mod pool;
mod ring;
mod roster;
mod subset;
#[cfg(test)]
mod testing;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use ewma::{EwmaSettings, PeakEwma};
pub use hash::stable_hash;
pub use load::{InFlight, Load, Standing};
pub use roster::{Roster, Scope};
pub use subset::subset;

/// An instance, as far as picking one is concerned.
///
/// Implemented by the caller's own type, which embeds a [`Load`], and by whatever points to it.
pub trait Candidate {
    /// What is known of how it answers. The same one for as long as the client knows the instance,
    /// through all rosters: two candidates with the same `Load` are one instance.
    fn load(&self) -> &Load;

    /// What the instance is called by every client: its address, or an id that outlives its address.
    /// Places on the ring and in subsets follow from it.
    fn id(&self) -> &str;

    /// How much it can carry compared to the others; 0 counts as 1. Who shall get nothing is
    /// [`Standing::Away`].
    fn weight(&self) -> u32 {
        1
    }

    /// Where it runs, if that is known.
    fn zone(&self) -> Option<&str> {
        None
    }
}

impl<P> Candidate for P
where
    P: Deref,
    P::Target: Candidate,
{
    fn load(&self) -> &Load {
        (**self).load()
    }

    fn id(&self) -> &str {
        (**self).id()
    }

    fn weight(&self) -> u32 {
        (**self).weight()
    }

    fn zone(&self) -> Option<&str> {
        (**self).zone()
    }
}

/// How an instance is picked.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Policy {
    /// Of two drawn at random the one whose peak latency times calls in flight is less. Finds the
    /// fast ones without herding to the fastest, and leaves those that fail.
    ///
    /// Mitzenmacher, "The power of two choices in randomized load balancing" (2001), over the peak
    /// latency of Finagle's `p2cPeakEwma`; one that is more than twice as slow is handicapped, since
    /// its cost flatters it where instances work on many calls at a time. Weights are shares of the draws, and an instance of
    /// twice the weight carries twice the calls in flight at the same cost.
    #[default]
    PeakEwma,
    /// One after the other. Weights do not count.
    RoundRobin,
    /// One after the other, by weight: in as many picks as all weights together, each instance gets
    /// exactly its weight, spread evenly. Starts anywhere, so that clients that start together do
    /// not go round together (gRFC A58).
    WeightedRoundRobin,
    /// Of `choices` drawn at random the one with the fewest calls in flight, by weight (gRFC A48).
    /// For calls whose time says nothing about the instance, such as long polls.
    LeastRequest {
        /// Taken as at least 2 and at most 10.
        choices: u32,
    },
    /// The same key goes to the same instance, and keys move only when theirs leaves or a new one
    /// takes its share: a ring of about 1,024 to 4,096 entries (gRFC A42). The zone does not count,
    /// since every client must see the same ring, and neither does the slow start.
    ConsistentHash {
        /// How many times the average of calls in flight an instance may have before its keys
        /// overflow to the next on the ring; 1.25 is usual, infinity never does. Needs
        /// [`PickInput::in_flight`]. Mirrokni, Thorup, Zadimoghaddam, "Consistent hashing with
        /// bounded loads" (2016).
        bound: f32,
    },
}

/// How a target's instances are picked.
#[derive(Clone, Debug, PartialEq)]
pub struct BalanceSettings {
    /// The policy.
    pub policy: Policy,
    /// Where this client runs. Instances of the same zone are preferred, which is only wise where
    /// zones are of like size: each client adds its whole load to its own zone.
    pub zone: Option<Arc<str>>,
    /// Below this share of usable instances a preference gives way, in `0.0..=1.0`: the own zone to
    /// all zones, ejection to panic.
    pub usable_min: f64,
    /// How long the share of an instance that became ready rises from a tenth to the whole; zero
    /// gives it the whole at once. Not done where there are fewer than three to pick from.
    pub slow_start: Duration,
    /// [`Policy::PeakEwma`] picks an instance that was drawn and has not been picked for this long
    /// whatever its cost, so that what is known of it does not become too old. One that failed is
    /// asked again sooner, see [`InFlight::failed`].
    pub unpicked_max: Duration,
}

impl Default for BalanceSettings {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            zone: None,
            usable_min: 0.5,
            slow_start: Duration::from_secs(10),
            unpicked_max: Duration::from_secs(5),
        }
    }
}

/// What one pick depends on besides the roster.
#[derive(Debug)]
pub struct PickInput<'a, C> {
    /// The moment of the pick.
    pub now: Instant,
    /// A fresh random number.
    pub random: u64,
    /// Instances that this call was sent to already.
    pub tried: &'a [C],
    /// What [`Policy::ConsistentHash`] goes by, see [`stable_hash`]; without it any instance will do.
    pub key: Option<u64>,
    /// Calls in flight to all instances of the target, without this one, for the bound of
    /// [`Policy::ConsistentHash`]; without it nothing is bounded. A target's bulkhead counts them.
    pub in_flight: Option<u32>,
}

impl<C> PickInput<'_, C> {
    /// The first attempt of a call without a key.
    #[must_use]
    pub fn new(now: Instant, random: u64) -> Self {
        Self { now, random, tried: &[], key: None, in_flight: None }
    }
}
