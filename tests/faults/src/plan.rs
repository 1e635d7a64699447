//! What goes wrong, and when: decided by a seed before anything runs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The services of the shop, in the order in which they are numbered.
pub const ROLES: [&str; 6] =
    ["orders", "inventory", "payments", "points", "shipping", "notifications"];

/// The time between two moments at which something goes wrong, in milliseconds.
const BETWEEN: std::ops::Range<u64> = 2_000..8_000;
/// A lease of the outbox is 6 s: a process that was stopped for longer has lost it.
const PAUSE: std::ops::Range<u64> = 8_000..11_000;

/// One of the servers that the shop stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The database server.
    Store,
    /// The broker.
    Broker,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A service is killed, and started again after a while.
    Kill {
        /// Which.
        role: usize,
    },
    /// A service is stopped where it is for longer than a lease, while another instance works.
    Pause {
        /// Which.
        role: usize,
    },
    /// Further instances of a service come and go.
    Storm {
        /// Which.
        role: usize,
    },
    /// A service is killed and runs on with a clock that is wrong.
    Clock {
        /// Which.
        role: usize,
        /// By how many seconds.
        seconds: i64,
    },
    /// A server ends in order and is started again.
    Restart(Side),
    /// A server is killed and started again.
    Crash(Side),
    /// A server is stopped where it is.
    Freeze(Side),
    /// A server ends all connections.
    Disconnect(Side),
    /// The disk of a server is full.
    Fill(Side),
    /// Something is wrong between a service and a server.
    Network {
        /// Which service.
        role: usize,
        /// Which server.
        side: Side,
        /// What.
        kind: Network,
    },
}

/// What is wrong with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Everything takes longer by so many milliseconds, each way.
    Latency(u64),
    /// Nothing passes, and nothing is lost.
    Hold,
    /// What the service says is lost.
    SwallowRequests,
    /// What the server says is lost.
    SwallowAnswers,
    /// Connections are reset, again and again.
    Reset,
    /// Connections are reset after so many bytes from the server.
    CutAnswers(u64),
    /// Connections are reset after so many bytes from the service.
    CutRequests(u64),
    /// No new connection is accepted, and the open ones are reset.
    Refuse,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Store => "database",
            Self::Broker => "broker",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { role } => write!(f, "kill {}", ROLES[*role]),
            Self::Pause { role } => write!(f, "pause {} beside a second instance", ROLES[*role]),
            Self::Storm { role } => write!(f, "more instances of {} come and go", ROLES[*role]),
            Self::Clock { role, seconds } => {
                write!(f, "the clock of {} is wrong by {seconds} s", ROLES[*role])
            }
            Self::Restart(side) => write!(f, "restart the {side}"),
            Self::Crash(side) => write!(f, "kill the {side}"),
            Self::Freeze(side) => write!(f, "pause the {side}"),
            Self::Disconnect(side) => write!(f, "the {side} ends all connections"),
            Self::Fill(side) => write!(f, "the disk of the {side} is full"),
            Self::Network { role, side, kind } => {
                let role = ROLES[*role];
                match kind {
                    Network::Latency(ms) => write!(f, "{role} and {side}: {ms} ms each way"),
                    Network::Hold => write!(f, "{role} and {side}: a partition"),
                    Network::SwallowRequests => write!(f, "{role} to {side}: everything is lost"),
                    Network::SwallowAnswers => write!(f, "{side} to {role}: answers are lost"),
                    Network::Reset => write!(f, "{role} and {side}: resets"),
                    Network::CutAnswers(n) => write!(f, "{side} to {role}: reset after {n} bytes"),
                    Network::CutRequests(n) => write!(f, "{role} to {side}: reset after {n} bytes"),
                    Network::Refuse => write!(f, "{role} and {side}: connections are refused"),
                }
            }
        }
    }
}

/// A kind of fault, of which the plan draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// See [`Fault::Kill`].
    Kill,
    /// See [`Fault::Pause`].
    Pause,
    /// See [`Fault::Storm`].
    Storm,
    /// See [`Fault::Clock`].
    Clock,
    /// See [`Fault::Restart`].
    Restart(Side),
    /// See [`Fault::Crash`].
    Crash(Side),
    /// See [`Fault::Freeze`].
    Freeze(Side),
    /// See [`Fault::Disconnect`].
    Disconnect(Side),
    /// See [`Fault::Fill`].
    Fill(Side),
    /// See [`Fault::Network`]: delays, losses, resets.
    Slow(Side),
    /// Bytes vanish.
    Loss(Side),
    /// Connections break.
    Break(Side),
}

/// A fault with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it begins.
    pub at: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// What it is.
    pub fault: Fault,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        write!(f, "{at:>6.1} s  {} (for {lasts:.1} s)", self.fault)
    }
}

/// What a fault keeps busy: nothing goes wrong twice at the same place and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Process(usize),
    Server(Side),
    Link(usize, Side),
}

impl Fault {
    fn subject(self) -> Subject {
        match self {
            Self::Kill { role }
            | Self::Pause { role }
            | Self::Storm { role }
            | Self::Clock { role, .. } => Subject::Process(role),
            Self::Restart(side)
            | Self::Crash(side)
            | Self::Freeze(side)
            | Self::Disconnect(side)
            | Self::Fill(side) => Subject::Server(side),
            Self::Network { role, side, .. } => Subject::Link(role, side),
        }
    }
}

/// Draws faults until `active` is over. Each kind comes before any comes again, so that a run that is
/// long enough has them all; the last ones end in time.
#[must_use]
pub fn plan(seed: u64, active: Duration, kinds: &[Kind]) -> Vec<Event> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bag: Vec<Kind> = Vec::new();
    let mut busy: BTreeMap<Subject, Duration> = BTreeMap::new();
    let mut events = Vec::new();
    let mut now = Duration::from_millis(random.u64(500..1_500));
    while now < active && !kinds.is_empty() {
        for _ in 0..random.usize(1..=2) {
            if bag.is_empty() {
                bag = kinds.to_vec();
                random.shuffle(&mut bag);
            }
            let Some(kind) = bag.pop() else { continue };
            let (fault, lasts) = draw(&mut random, kind);
            let free = busy.get(&fault.subject()).is_none_or(|until| *until <= now);
            if free && now + lasts <= active {
                // Whoever recovers is not hit again at once.
                busy.insert(fault.subject(), now + lasts + Duration::from_secs(1));
                events.push(Event { at: now, lasts, fault });
            } else {
                // Its turn comes later.
                let place = random.usize(0..=bag.len());
                bag.insert(place, kind);
            }
        }
        now += Duration::from_millis(random.u64(BETWEEN));
    }
    events
}

fn draw(random: &mut fastrand::Rng, kind: Kind) -> (Fault, Duration) {
    let role = random.usize(..ROLES.len());
    let mut lasting = |range| Duration::from_millis(random.u64(range));
    match kind {
        Kind::Kill => (Fault::Kill { role }, lasting(100..2_500)),
        Kind::Pause => (Fault::Pause { role }, lasting(PAUSE)),
        Kind::Storm => (Fault::Storm { role }, lasting(9_000..12_000)),
        Kind::Clock => {
            let lasts = lasting(4_000..8_000);
            let seconds = if random.bool() { 300 } else { -300 };
            (Fault::Clock { role, seconds }, lasts)
        }
        Kind::Restart(side) => (Fault::Restart(side), lasting(100..1_500)),
        Kind::Crash(side) => (Fault::Crash(side), lasting(100..1_500)),
        Kind::Freeze(side) => (Fault::Freeze(side), lasting(1_000..5_000)),
        Kind::Disconnect(side) => (Fault::Disconnect(side), lasting(200..1_000)),
        Kind::Fill(side) => (Fault::Fill(side), lasting(2_000..5_000)),
        Kind::Slow(side) => {
            let lasts = lasting(2_000..5_000);
            let kind = match random.u8(..3) {
                0 => Network::Hold,
                _ => Network::Latency(random.u64(10..200)),
            };
            (Fault::Network { role, side, kind }, lasts)
        }
        Kind::Loss(side) => {
            let lasts = lasting(1_500..5_000);
            // Lost answers are the cruel ones: the work was done, and nobody knows.
            let kind = match random.u8(..3) {
                0 => Network::SwallowRequests,
                _ => Network::SwallowAnswers,
            };
            (Fault::Network { role, side, kind }, lasts)
        }
        Kind::Break(side) => {
            let lasts = lasting(500..3_000);
            let kind = match random.u8(..4) {
                0 => Network::Reset,
                1 => Network::CutAnswers(random.u64(1..4_000)),
                2 => Network::CutRequests(random.u64(1..4_000)),
                _ => Network::Refuse,
            };
            (Fault::Network { role, side, kind }, lasts)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Kind; 12] = [
        Kind::Kill,
        Kind::Pause,
        Kind::Storm,
        Kind::Clock,
        Kind::Restart(Side::Broker),
        Kind::Crash(Side::Store),
        Kind::Freeze(Side::Store),
        Kind::Disconnect(Side::Store),
        Kind::Fill(Side::Broker),
        Kind::Slow(Side::Store),
        Kind::Loss(Side::Broker),
        Kind::Break(Side::Broker),
    ];

    #[test]
    fn a_seed_decides_everything() {
        let active = Duration::from_secs(120);
        assert_eq!(plan(7, active, &ALL), plan(7, active, &ALL));
        assert_ne!(plan(7, active, &ALL), plan(8, active, &ALL));
        assert_eq!(plan(7, active, &[]), []);
    }

    #[test]
    fn everything_happens_in_time_and_nothing_twice_at_one_place() {
        let active = Duration::from_secs(180);
        for seed in 0..200 {
            let events = plan(seed, active, &ALL);
            assert!(events.len() > 20, "{seed}: {} events", events.len());
            for (number, event) in events.iter().enumerate() {
                assert!(event.at + event.lasts <= active, "{seed}: {event}");
                for other in &events[..number] {
                    let apart = other.fault.subject() != event.fault.subject()
                        || other.at + other.lasts < event.at;
                    assert!(apart, "{seed}: {other} and {event}");
                }
            }
        }
    }

    #[test]
    fn a_long_run_has_every_kind() {
        for seed in 0..50 {
            let events = plan(seed, Duration::from_secs(240), &ALL);
            let has = |wanted: fn(&Fault) -> bool| events.iter().any(|event| wanted(&event.fault));
            assert!(has(|fault| matches!(fault, Fault::Kill { .. })), "{seed}");
            assert!(has(|fault| matches!(fault, Fault::Pause { .. })), "{seed}");
            assert!(has(|fault| matches!(fault, Fault::Storm { .. })), "{seed}");
            assert!(has(|fault| matches!(fault, Fault::Clock { .. })), "{seed}");
            assert!(has(|fault| matches!(fault, Fault::Restart(_))), "{seed}");
            assert!(has(|fault| matches!(fault, Fault::Fill(_))), "{seed}");
            assert!(has(|fault| matches!(fault, Fault::Network { .. })), "{seed}");
        }
    }

    #[test]
    fn a_pause_is_longer_than_a_lease() {
        let events = plan(1, Duration::from_secs(300), &[Kind::Pause]);
        assert!(!events.is_empty());
        assert!(events.iter().all(|event| event.lasts > Duration::from_secs(6)));
    }
}
