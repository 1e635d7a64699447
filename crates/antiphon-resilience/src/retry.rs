//! Whether a call that failed is tried again.
//!
//! The rules are those of gRFC A6 (client retries), with the permission taken from the contract and a
//! [budget](crate::budget) in the place of gRPC's token count:
//!
//! * What never left this process is tried again until the deadline, and not counted.
//! * What the server provably did not look at is tried again at once, once, and not counted; after
//!   that it counts.
//! * Everything else counts, needs the permission of the method, a token of the budget, and time:
//!   nobody waits for an attempt that could not be answered before the deadline.
//! * What the server says about waiting ([`Pushback`]) overrules our own backoff.
//!
//! # Only one layer retries
//! In a chain of services each layer with a budget of 20 % would multiply it: 1.2³ at the end of three.
//! Two rules stop that. The layer next to the failure retries; when it gives up it says so to its own
//! caller ([`Stop::pushback`], sent as `grpc-retry-pushback-ms: -1`), who then does not try again what
//! was tried already. That bounds the attempts at 1.2 for each original call. And every attempt says
//! how many came before it, here and in the layers above (`grpc-previous-rpc-attempts`): a service
//! that works for a second attempt makes none of its own that count, and earns no budget by it. Where
//! somebody in between does not pass pushback on, budgets then add up (1.6) and do not multiply.

pub mod pushback;

use std::time::Duration;

use antiphon_core::Code;

use crate::Backoff;
pub use pushback::Pushback;

/// What a method allows, from its contract. Each level allows what those before it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// Nothing is said: only what was provably not executed.
    NotExecuted,
    /// The option `retry`: UNAVAILABLE as well, which servers say of work that they did not take.
    Unavailable,
    /// `idempotency_level = IDEMPOTENT`, or a call with an idempotency key of a method that is
    /// `idempotent_by_key`: all codes of the policy.
    Idempotent,
    /// `idempotency_level = NO_SIDE_EFFECTS`: all codes of the policy, and hedging.
    NoSideEffects,
}

/// A set of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes(u32);

impl Codes {
    /// UNAVAILABLE alone.
    pub const UNAVAILABLE: Self = Self(1 << Code::Unavailable.number());

    /// Whether the code is in it.
    #[must_use]
    pub const fn contains(self, code: Code) -> bool {
        self.0 & 1 << code.number() != 0
    }
}

impl FromIterator<Code> for Codes {
    fn from_iter<T: IntoIterator<Item = Code>>(codes: T) -> Self {
        Self(codes.into_iter().fold(0, |bits, code| bits | 1 << code.number()))
    }
}

/// How often and for what a call is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// How many attempts in all, the first included; above [`Self::ATTEMPTS_LIMIT`] counts as that.
    /// 1 leaves only the attempts that do not count.
    pub attempts_max: u32,
    /// What is tried again, where the method allows it. Codes other than UNAVAILABLE need a method
    /// that is idempotent.
    pub codes: Codes,
    /// The waits.
    pub backoff: Backoff,
}

impl Default for RetryPolicy {
    /// Three attempts, for UNAVAILABLE, with the waits of gRPC.
    fn default() -> Self {
        Self { attempts_max: 3, codes: Codes::UNAVAILABLE, backoff: Backoff::RETRY }
    }
}

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No byte of it left this process: the connection was gone, or took no further stream.
    ///
    /// Not for a target that has no instance to send to: whether a call waits for one or fails is for
    /// the balancer to say.
    NotSent,
    /// The server did not look at it: REFUSED_STREAM, or GOAWAY with a last stream before this one.
    Refused,
    /// It ended with this code, and nothing of a response was passed on to the caller.
    Answered(Code, Option<Pushback>),
    /// A policy of this process refused it: throttle or bulkhead.
    Rejected,
    /// A part of the response was passed on to the caller already.
    Committed,
    /// More of the request was sent than the replay buffer holds.
    ReplayOverflow,
}

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Make another attempt.
    Retry {
        /// Not before this much time.
        after: Duration,
        /// It does not count: neither as an attempt nor against the budget.
        transparent: bool,
    },
    /// Give the failure to the caller.
    Stop(Stop),
}

/// Why there is no further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The deadline has passed.
    Expired,
    /// The wait would last longer than the deadline.
    NoTime,
    /// The method does not allow it, or the code says that it would fail again.
    NotRetryable,
    /// As many attempts as the policy allows were made.
    AttemptsUsed,
    /// The budget of the target is used up.
    BudgetSpent,
    /// The server asked for no further attempt.
    PushedBack,
    /// The caller of this process is making attempts of its own.
    CallerRetries,
    /// A policy of this process refused the attempt.
    Rejected,
    /// The response has begun.
    Committed,
    /// The request cannot be sent once more.
    ReplayOverflow,
}

impl Stop {
    /// What a server whose work ended with this tells its own caller about trying again.
    ///
    /// `Some(Pushback::Never)` where the work was tried again already, or must not be for the sake of
    /// the target: the layer above would multiply it.
    #[must_use]
    pub const fn pushback(self) -> Option<Pushback> {
        match self {
            Self::AttemptsUsed | Self::BudgetSpent | Self::PushedBack | Self::Rejected => {
                Some(Pushback::Never)
            }
            Self::Expired
            | Self::NoTime
            | Self::NotRetryable
            | Self::CallerRetries
            | Self::Committed
            | Self::ReplayOverflow => None,
        }
    }
}

/// The attempts of one call so far.
#[derive(Clone, Copy, Debug)]
pub struct Attempts {
    permission: Permission,
    /// How many attempts the layers above had made before the one that this call is a part of.
    inherited: u32,
    /// Those that count, the first included.
    made: u32,
    transparent: u32,
    refused: bool,
    backoffs: u32,
}

impl Attempts {
    /// The first attempt of a call to a method with this permission.
    ///
    /// `inherited` is what the call in whose handler this happens says about itself: how many attempts
    /// came before it (`grpc-previous-rpc-attempts`), 0 outside of a handler.
    #[must_use]
    pub const fn new(permission: Permission, inherited: u32) -> Self {
        Self { permission, inherited, made: 1, transparent: 0, refused: false, backoffs: 0 }
    }

    /// How many attempts that count came before the present one, those of the layers above included:
    /// what `grpc-previous-rpc-attempts` says when it is not 0.
    ///
    /// A call that begins with 0 earns budget ([`Budget::count_call`](crate::Budget::count_call)),
    /// another does not.
    #[must_use]
    pub const fn previous(&self) -> u32 {
        self.inherited.saturating_add(self.made - 1)
    }
}

impl RetryPolicy {
    /// The most attempts of one call that any policy can ask for (gRFC A6).
    pub const ATTEMPTS_LIMIT: u32 = 5;

    /// Decides after an attempt failed, and notes in `attempts` that another one is made.
    ///
    /// `remaining` is the time until the deadline of the call; `random` in `0.0..=1.0` spreads the
    /// waits. `reserve` takes a token from the budget of the target
    /// ([`Budget::try_spend`](crate::Budget::try_spend)); it is asked last, and only for what counts.
    #[must_use]
    pub fn decide(
        &self,
        attempts: &mut Attempts,
        failure: Failure,
        remaining: Duration,
        random: f64,
        reserve: impl FnOnce() -> bool,
    ) -> Decision {
        let decided = match failure {
            _ if remaining.is_zero() => Err(Stop::Expired),
            Failure::Rejected => Err(Stop::Rejected),
            Failure::Committed => Err(Stop::Committed),
            Failure::ReplayOverflow => Err(Stop::ReplayOverflow),
            Failure::NotSent => self.send_again(attempts, remaining, random),
            Failure::Refused if !attempts.refused => {
                attempts.refused = true;
                Ok(Decision::Retry { after: Duration::ZERO, transparent: true })
            }
            Failure::Refused => self.counted(attempts, None, remaining, random, reserve),
            Failure::Answered(code, _) if !self.retries(attempts.permission, code) => {
                Err(Stop::NotRetryable)
            }
            Failure::Answered(_, pushback) => {
                self.counted(attempts, pushback, remaining, random, reserve)
            }
        };
        decided.unwrap_or_else(Decision::Stop)
    }

    /// Whether an answer with this code may be followed by another attempt.
    fn retries(&self, permission: Permission, code: Code) -> bool {
        let needed = match code {
            Code::Unavailable => Permission::Unavailable,
            _ => Permission::Idempotent,
        };
        permission >= needed && self.codes.contains(code)
    }

    /// At once the first time: another instance may be there. Then with growing waits, or a target
    /// without any instance would be asked for as fast as a processor can.
    fn send_again(
        &self,
        attempts: &mut Attempts,
        remaining: Duration,
        random: f64,
    ) -> Result<Decision, Stop> {
        let after = match attempts.transparent {
            0 => Duration::ZERO,
            again => self.backoff.wait(again, random),
        };
        if after >= remaining {
            return Err(Stop::NoTime);
        }
        attempts.transparent = attempts.transparent.saturating_add(1);
        Ok(Decision::Retry { after, transparent: true })
    }

    fn counted(
        &self,
        attempts: &mut Attempts,
        pushback: Option<Pushback>,
        remaining: Duration,
        random: f64,
        reserve: impl FnOnce() -> bool,
    ) -> Result<Decision, Stop> {
        if attempts.inherited > 0 {
            return Err(Stop::CallerRetries);
        }
        // After a wait that the server chose, our own waits begin from the start (gRFC A6).
        let (after, backoffs) = match pushback {
            Some(Pushback::Never) => return Err(Stop::PushedBack),
            Some(Pushback::After(wait)) => (wait, 0),
            None => (self.backoff.wait(attempts.backoffs + 1, random), attempts.backoffs + 1),
        };
        if attempts.made >= self.attempts_max.min(Self::ATTEMPTS_LIMIT) {
            return Err(Stop::AttemptsUsed);
        }
        if after >= remaining {
            return Err(Stop::NoTime);
        }
        if !reserve() {
            return Err(Stop::BudgetSpent);
        }
        attempts.backoffs = backoffs;
        attempts.made += 1;
        Ok(Decision::Retry { after, transparent: false })
    }
}

#[cfg(test)]
mod tests;
