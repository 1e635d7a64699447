//! The states of the way to an instance, and what leads from one to the other.
//!
//! ```text
//!            wanted            connected
//!   idle ───────────► connecting ───────► ready ──► idle      (target unused for long)
//!                      ▲  │ failed          │
//!              waited  │  ▼                 │ lost: connecting,
//!                   backing off ◄───────────┘ or backing off when it was lost at once, unused
//!
//!   any ── gone ──► draining, for good
//! ```
//!
//! Only a ready instance is given calls. A client that takes an instance to be ready because nobody has
//! noticed yet that it is dead sends it a call each time that it tries to connect, and prefers it,
//! since nothing fails as fast as a refused connection (grpc-rust issues 643, 2839).

use std::time::Duration;

use antiphon_resilience::Backoff;

/// How far the way to an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum State {
    /// Nobody has called yet, or for long.
    Idle,
    /// A connection is being made.
    Connecting,
    /// It is connected and may be given calls.
    Ready,
    /// It could not be connected to; the next attempt comes later.
    BackingOff,
    /// It is no longer an instance of the target: calls under way end, no others begin.
    Draining,
}

impl State {
    /// In metrics and on the debug page.
    #[must_use]
    pub(in super::super) const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Ready => "ready",
            Self::BackingOff => "backing_off",
            Self::Draining => "draining",
        }
    }
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody calls the target.
    Wanted,
    /// There is a connection.
    Connected,
    /// None could be made.
    Failed,
    /// The time of backing off is over.
    Waited,
    /// The last connection takes no more calls: it broke, or the server asked to leave.
    Lost {
        /// For how long it was ready.
        after: Duration,
        /// Whether a call was answered meanwhile.
        answered: bool,
    },
    /// The target was not called for long.
    Unused,
    /// It is no longer an instance of the target.
    Gone,
}

/// What to do, and then to report with the next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Wait until it is wanted.
    Rest,
    /// Make a connection.
    Connect,
    /// Watch the connections.
    Watch,
    /// Wait for this long before the next attempt.
    Wait(Duration),
    /// Nothing more.
    End,
}

/// A connection that was lost sooner than this, and over which no call was answered, was as good as
/// none: servers that accept connections and close them must not be connected to without a pause.
const READY_MIN: Duration = Backoff::CONNECT.initial;

/// The way to one instance.
#[derive(Debug)]
pub(super) struct Way {
    state: State,
    failures: u32,
}

impl Way {
    /// Nobody has called yet.
    pub(super) const fn new() -> Self {
        Self { state: State::Idle, failures: 0 }
    }

    pub(super) const fn state(&self) -> State {
        self.state
    }

    /// Moves on. `random` in `0.0..=1.0` spreads the attempts of many clients. What makes no sense in
    /// a state, such as a late report, changes nothing.
    pub(super) fn step(&mut self, event: Event, backoff: &Backoff, random: f64) -> Action {
        use {Event as E, State as S};
        self.state = match (self.state, event) {
            (S::Draining, _) | (_, E::Gone) => S::Draining,
            (S::Idle, E::Wanted) | (S::BackingOff, E::Waited) => S::Connecting,
            (S::Connecting, E::Connected) => S::Ready,
            (S::Ready, E::Lost { after, answered }) if answered || after >= READY_MIN => {
                self.failures = 0;
                S::Connecting
            }
            (S::Connecting, E::Failed) | (S::Ready, E::Lost { .. }) => {
                self.failures = self.failures.saturating_add(1);
                S::BackingOff
            }
            (S::Ready, E::Unused) => S::Idle,
            (state, _) => state,
        };
        match self.state {
            S::Idle => Action::Rest,
            S::Connecting => Action::Connect,
            S::Ready => Action::Watch,
            S::BackingOff => Action::Wait(backoff.wait(self.failures, random)),
            S::Draining => Action::End,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST: Event = Event::Lost { after: READY_MIN, answered: false };
    const LOST_AT_ONCE: Event = Event::Lost { after: Duration::ZERO, answered: false };
    const USED_AND_LOST: Event = Event::Lost { after: Duration::ZERO, answered: true };

    fn walk(events: &[Event]) -> (Way, Action) {
        let mut way = Way::new();
        let mut action = Action::Rest;
        for event in events {
            action = way.step(*event, &Backoff::CONNECT, 0.5);
        }
        (way, action)
    }

    #[test]
    fn every_path_ends_where_it_should() {
        use {Event as E, State as S};
        for (events, state, action) in [
            (&[][..], S::Idle, Action::Rest),
            (&[E::Wanted], S::Connecting, Action::Connect),
            (&[E::Wanted, E::Connected], S::Ready, Action::Watch),
            (&[E::Wanted, E::Connected, E::Wanted], S::Ready, Action::Watch),
            (&[E::Wanted, E::Connected, LOST], S::Connecting, Action::Connect),
            (&[E::Wanted, E::Connected, USED_AND_LOST], S::Connecting, Action::Connect),
            (
                &[E::Wanted, E::Connected, LOST_AT_ONCE],
                S::BackingOff,
                Action::Wait(Backoff::CONNECT.initial),
            ),
            (&[E::Wanted, E::Connected, E::Unused], S::Idle, Action::Rest),
            (&[E::Wanted, E::Connected, E::Unused, E::Wanted], S::Connecting, Action::Connect),
            (&[E::Wanted, E::Failed, E::Waited], S::Connecting, Action::Connect),
            (&[E::Wanted, E::Failed, E::Waited, E::Connected], S::Ready, Action::Watch),
            (&[E::Gone], S::Draining, Action::End),
            (&[E::Wanted, E::Connected, E::Gone, LOST], S::Draining, Action::End),
        ] {
            let (way, done) = walk(events);
            assert_eq!((way.state(), done), (state, action), "{events:?}");
        }
    }

    #[test]
    fn an_instance_that_cannot_be_reached_is_tried_less_and_less() {
        let mut way = Way::new();
        let mut event = Event::Wanted;
        let mut waits = Vec::new();
        while waits.len() < 20 {
            event = match way.step(event, &Backoff::CONNECT, 0.5) {
                Action::Connect => Event::Failed,
                Action::Wait(wait) => {
                    assert_eq!(way.state(), State::BackingOff);
                    waits.push(wait);
                    Event::Waited
                }
                other => panic!("{other:?}"),
            };
        }
        assert!(waits.is_sorted() && waits[0] < waits[5], "{waits:?}");
        assert!(waits[19] <= Duration::from_secs(12), "{waits:?}");
        // Once it was reached it is tried at once again.
        assert_eq!(way.step(Event::Waited, &Backoff::CONNECT, 0.5), Action::Connect);
        way.step(Event::Connected, &Backoff::CONNECT, 0.5);
        way.step(LOST, &Backoff::CONNECT, 0.5);
        assert_eq!(way.step(Event::Failed, &Backoff::CONNECT, 0.5), Action::Wait(waits[0]));
    }

    #[test]
    fn a_server_that_closes_what_it_accepts_is_not_connected_to_without_a_pause() {
        let mut way = Way::new();
        way.step(Event::Wanted, &Backoff::CONNECT, 0.5);
        let mut wait = || {
            way.step(Event::Connected, &Backoff::CONNECT, 0.5);
            let lost = way.step(LOST_AT_ONCE, &Backoff::CONNECT, 0.5);
            way.step(Event::Waited, &Backoff::CONNECT, 0.5);
            lost
        };
        let (Action::Wait(first), Action::Wait(second)) = (wait(), wait()) else { panic!() };
        assert!(second > first);
        // Until one of its connections is of use.
        way.step(Event::Connected, &Backoff::CONNECT, 0.5);
        assert_eq!(way.step(USED_AND_LOST, &Backoff::CONNECT, 0.5), Action::Connect);
        assert_eq!(way.step(Event::Failed, &Backoff::CONNECT, 0.5), Action::Wait(first));
    }
}
