//! Which calls are let in when there are more than the service can work on. In this order:
//!
//! 1. rate limits of the method and of its service, where the settings have any ([`rates`](super::rates)).
//!    A limit that instances share may have to ask first: then the call passes the others meanwhile
//! 2. the limit on all calls in progress
//! 3. the processor: while it is busy, a method gets only the calls that keep it so
//! 4. the adaptive limit of the method
//! 5. fairness: while the method is nearly full, no client has more than its share
//!
//! 2 to 4 refuse lower [priorities](Priority) sooner. Health and reflection do not come here.
//!
//! Refusing must cost next to nothing, or a server that is called three times as often as it can
//! answer spends its time on saying no. So a refused call is counted, but has no span and, below the
//! level DEBUG, no line in the log of its own ([`watch`](super::watch) writes one a second for all).
//!
//! # What a refused caller is told
//! Above a rate limit: RESOURCE_EXHAUSTED (429) and when to come again. That is about the caller, so
//! no breaker counts it against this server. A call that another limit refuses afterwards has used up
//! its place in the rate all the same: what is limited is how often somebody calls.
//!
//! Else UNAVAILABLE (503), because another instance may well have room, and as pushback a short time,
//! drawn anew for each call. gRPC clients wait for exactly that before they go to another instance. A
//! fixed second, as it is often sent, would make calls last a second that the next instance could
//! have answered at once, and would bring all that were refused together back together. What the
//! retries may add in all is bounded by the callers' budgets, not by this wait. HTTP has whole
//! seconds only, so over it the wait is one. Calls below the default priority are told not to try
//! again at all: they can be done later, and the budgets are for those that cannot.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::time::Duration;

use antiphon_core::{Code, Priority, Retry, Status};
use antiphon_resilience::fairness::ClientCall;
use antiphon_resilience::verdict::OVERLOADED;
use antiphon_resilience::{CpuLoad, CpuUse, Outcome};
use tokio::time::Instant;

use super::arrived::Arrived;
use super::methods::Method;
use super::metrics::Shed;
use super::rates::{Checked, Waiting};
use super::settings::ServerSettings;

/// The time after which a call that found no place may be tried again, in milliseconds.
const PUSHBACK_MILLIS: std::ops::Range<u64> = 50..150;

/// The limits that all methods share.
#[derive(Debug)]
pub(super) struct Admission {
    calls_max: u32,
    trusts_priority: bool,
    /// How busy the processor is. Noted by [`watch`](super::watch); never busy where nobody does.
    pub(super) cpu: CpuLoad,
}

/// What asks to be let in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asks<'a> {
    pub(super) client: Client<'a>,
    pub(super) priority: Priority,
    pub(super) now: Instant,
}

/// Whose call it is, as far as limits are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Client<'a> {
    /// Whoever is behind this address.
    Address(IpAddr),
    /// What the header of the settings says.
    Named(&'a [u8]),
}

/// What an admitted call holds until it ends: its places in the limits of its method.
#[derive(Default)]
#[must_use = "the places are taken until they are given back to `leave`"]
pub(super) struct Places {
    limited: bool,
    client: Option<ClientCall>,
    /// What the rate limits will say, where they could not at once. Until then the call is in
    /// progress, and not worked on.
    pub(super) rates: Option<Undecided>,
}

/// What rate limits will say: an error is the time after which to come again.
pub(super) type Undecided = Pin<Box<dyn Future<Output = Result<(), Duration>> + Send + Sync>>;

/// Why a call is not let in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Refused {
    pub(super) why: Shed,
    pub(super) code: Code,
    /// When to come again; never where there is no time.
    after: Option<Duration>,
}

impl Client<'_> {
    /// Whoever is behind this address. Of IPv6 that is the network of 64 bits: whoever has one address
    /// of it has all, and would otherwise be as many clients as it likes.
    pub(super) fn at(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
            address @ IpAddr::V4(_) => address,
        })
    }
}

impl Admission {
    pub(super) fn new(settings: &ServerSettings, cpu: CpuUse, now: Instant) -> Self {
        Self {
            calls_max: settings.calls_max,
            trusts_priority: settings.trust_priority,
            cpu: CpuLoad::new(settings.cpu.unwrap_or_default(), cpu, now),
        }
    }

    /// The priority that the caller says the call has. That it matters little is always believed.
    pub(super) fn priority(&self, arrived: &Arrived<'_>) -> Priority {
        let said = arrived.priority().unwrap_or_default();
        if self.trusts_priority { said } else { said.min(Priority::Default) }
    }

    /// Lets a call of `method` in as one of `in_progress`, itself included.
    pub(super) fn admit(
        &self,
        method: &Method,
        asks: Asks<'_>,
        in_progress: u32,
    ) -> Result<Places, Refused> {
        let Asks { priority, now, .. } = asks;
        let rates = pass_rates(method, asks)?;
        if in_progress > priority.places(self.calls_max) {
            return Err(Refused::shed(Shed::CallsMax, priority));
        }
        let Some(limits) = &method.limits else {
            let places = Places { rates, ..Places::default() };
            return places.shared(method, asks, in_progress - 1, priority.places(self.calls_max));
        };
        let in_flight = limits.concurrency.in_flight();
        if !limits.cpu.admits(&self.cpu, priority, in_flight, now) {
            return Err(Refused::shed(Shed::Cpu, priority));
        }
        if !limits.concurrency.try_enter_as(priority) {
            return Err(Refused::shed(Shed::Concurrency, priority));
        }
        let limit = priority
            .places(limits.concurrency.limit())
            .min(limits.cpu.places(&self.cpu, priority, now));
        let places = Places { limited: true, client: None, rates };
        places.shared(method, asks, in_flight, limit)
    }
}

/// Passes the rate limits of a method, or begins to wait for those that are shared.
fn pass_rates(method: &Method, asks: Asks<'_>) -> Result<Option<Undecided>, Refused> {
    let mut waiting: Vec<Waiting> = Vec::new();
    for rate in &method.rates {
        match rate.check(asks.client, asks.now) {
            Checked::In => {}
            Checked::Refused(after) => return Err(Refused::above_rate(after)),
            Checked::Waits(one) => waiting.push(one),
        }
    }
    if waiting.is_empty() {
        return Ok(None);
    }
    Ok(Some(Box::pin(async move {
        // Their questions are under way already.
        for one in waiting {
            one.decided().await?;
        }
        Ok(())
    })))
}

impl Places {
    /// These places, and one of those that the client may have of `limit`.
    fn shared(
        mut self,
        method: &Method,
        asks: Asks<'_>,
        in_flight: u32,
        limit: u32,
    ) -> Result<Self, Refused> {
        let Some(fairness) = &method.fairness else {
            return Ok(self);
        };
        self.client = fairness.try_enter(asks.client, in_flight, limit, asks.now);
        if self.client.is_none() {
            self.leave(method, Duration::ZERO, asks.now, Outcome::Ignored);
            return Err(Refused::shed(Shed::Fairness, asks.priority));
        }
        Ok(self)
    }

    /// Gives the places back: the call ended at `now`, after `took`.
    pub(super) fn leave(self, method: &Method, took: Duration, now: Instant, outcome: Outcome) {
        if self.limited
            && let Some(limits) = &method.limits
        {
            limits.concurrency.leave(took, now, outcome);
            if outcome == Outcome::Done {
                limits.cpu.record(took, now);
            }
        }
        if let (Some(client), Some(fairness)) = (self.client, &method.fairness) {
            fairness.leave(client);
        }
    }
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Places").field("limited", &self.limited).finish_non_exhaustive()
    }
}

impl Refused {
    pub(super) fn above_rate(after: Duration) -> Self {
        Self { why: Shed::Rate, code: Code::ResourceExhausted, after: Some(after) }
    }

    fn shed(why: Shed, priority: Priority) -> Self {
        let after = (priority >= Priority::Default)
            .then(|| Duration::from_millis(fastrand::u64(PUSHBACK_MILLIS)));
        Self { why, code: Code::Unavailable, after }
    }

    /// What the caller is told.
    pub(super) fn status(self) -> Status {
        let (reason, message) = match self.why {
            Shed::Rate => ("RATE_LIMITED", "more calls came than are allowed in this time"),
            Shed::Fairness => (OVERLOADED, "this client has its share of a busy server"),
            _ => (OVERLOADED, "more calls are in progress than this server can work on"),
        };
        Status::new(self.code, message)
            .with_reason(reason, "antiphon")
            .with_retry(self.after.map_or(Retry::Never, Retry::After))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_are_one_client() {
        let client = |address: &str| Client::at(address.parse().unwrap());
        assert_eq!(client("2001:db8:1:2::1"), client("2001:db8:1:2:ffff::9"));
        assert_ne!(client("2001:db8:1:2::1"), client("2001:db8:1:3::1"));
        assert_eq!(client("::ffff:10.0.0.1"), client("10.0.0.1"));
        assert_ne!(client("10.0.0.1"), client("10.0.0.2"));
    }
}
