//! Instances that answer in virtual time, and callers who pick one for each call: no clock, one seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use antiphon_resilience::balance::{
    BalanceSettings, Candidate, EwmaSettings, InFlight, Load, PickInput, Roster, Standing,
};
use tokio::time::Instant;

/// What a client knows of an instance.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) at: usize,
    id: String,
    weight: u32,
    load: Load,
}

impl Candidate for Instance {
    fn load(&self) -> &Load {
        &self.load
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn weight(&self) -> u32 {
        self.weight
    }
}

/// How an instance answers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Temper {
    /// Always after as long.
    Steady(Duration),
    /// At random, on average after as long.
    Exponential(Duration),
    /// Steady, but for this part of the calls: they fail after 50 microseconds.
    Failing(f64),
}

impl Temper {
    fn work(self, random: &mut fastrand::Rng) -> (Duration, bool) {
        match self {
            Self::Steady(time) => (time, true),
            Self::Exponential(mean) => (mean.mul_f64(-(1.0 - random.f64()).ln()), true),
            Self::Failing(part) if random.f64() < part => (Duration::from_micros(50), false),
            Self::Failing(_) => (Duration::from_millis(5), true),
        }
    }
}

/// Works on some calls at a time; the others wait for their turn.
#[derive(Debug)]
struct Server {
    temper: Temper,
    /// When each worker is free.
    free: BinaryHeap<Reverse<Duration>>,
}

/// A call that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) arrived: Duration,
    pub(crate) instance: usize,
    pub(crate) took: Duration,
}

#[derive(Debug)]
struct Call {
    flight: InFlight<Arc<Instance>>,
    arrived: Duration,
    good: bool,
}

#[derive(Debug)]
pub(crate) struct World {
    origin: Instant,
    settings: BalanceSettings,
    roster: Roster<Arc<Instance>>,
    servers: Vec<Server>,
    calls: BTreeMap<(Duration, u64), Call>,
    sent: u64,
    now: Duration,
    random: fastrand::Rng,
}

impl World {
    pub(crate) fn new(settings: BalanceSettings, seed: u64) -> Self {
        let origin = Instant::now();
        Self {
            origin,
            roster: Roster::new([], settings.clone(), origin, 0),
            settings,
            servers: Vec::new(),
            calls: BTreeMap::new(),
            sent: 0,
            now: Duration::ZERO,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// An instance becomes known and ready.
    pub(crate) fn add(&mut self, temper: Temper, workers: usize, weight: u32) {
        let now = self.origin + self.now;
        let at = self.servers.len();
        let load = Load::new(&EwmaSettings::default(), now);
        load.set_standing(Standing::Ready, now);
        let free = (0..workers).map(|_| Reverse(self.now)).collect();
        self.servers.push(Server { temper, free });
        let mut candidates = self.roster.candidates().to_vec();
        candidates.push(Arc::new(Instance { at, id: format!("instance-{at}"), weight, load }));
        self.roster = Roster::new(candidates, self.settings.clone(), now, self.random.u64(..));
    }

    /// From now on an instance answers like this.
    pub(crate) fn change(&mut self, instance: usize, temper: Temper) {
        self.servers[instance].temper = temper;
    }

    /// Calls arrive at random, `rate` in a second, whether others have ended or not. Returns the
    /// calls that arrived in this time, in the order of their ends.
    pub(crate) fn run(&mut self, length: Duration, rate: f64) -> Vec<Ended> {
        let (from, until) = (self.now, self.now + length);
        let mut ended = Vec::new();
        loop {
            self.now += Duration::from_secs_f64(-(1.0 - self.random.f64()).ln() / rate);
            if self.now >= until {
                break;
            }
            self.settle(self.now, &mut ended);
            self.send();
        }
        self.now = until;
        self.settle(Duration::MAX, &mut ended);
        ended.retain(|call| call.arrived >= from);
        ended
    }

    /// Calls that instances are said to be working on.
    pub(crate) fn in_flight(&self) -> u32 {
        self.roster.candidates().iter().map(|instance| instance.load.in_flight()).sum()
    }

    fn send(&mut self) {
        let now = self.origin + self.now;
        let input = PickInput::new(now, self.random.u64(..));
        let instance = Arc::clone(self.roster.pick(&input).expect("one is ready"));
        let server = &mut self.servers[instance.at];
        let (work, good) = server.temper.work(&mut self.random);
        let Reverse(free) = server.free.pop().expect("there is a worker");
        let end = free.max(self.now) + work;
        server.free.push(Reverse(end));
        let flight = InFlight::begin(instance, now);
        self.calls.insert((end, self.sent), Call { flight, arrived: self.now, good });
        self.sent += 1;
    }

    fn settle(&mut self, now: Duration, ended: &mut Vec<Ended>) {
        while let Some(entry) = self.calls.first_entry().filter(|entry| entry.key().0 <= now) {
            let end = entry.key().0;
            let Call { flight, arrived, good } = entry.remove();
            if good {
                flight.answered(self.origin + end);
            } else {
                flight.failed(self.origin + end, None);
            }
            let instance = flight.candidate().at;
            ended.push(Ended { arrived, instance, took: end - arrived });
        }
    }
}

/// How large a part of the calls went to an instance, in percent.
pub(crate) fn percent(calls: &[Ended], instance: usize) -> f64 {
    let its = calls.iter().filter(|call| call.instance == instance).count();
    100.0 * its as f64 / calls.len() as f64
}

/// What 999 of 1,000 calls took at most, in milliseconds.
pub(crate) fn p999(calls: &[Ended]) -> f64 {
    let mut times: Vec<_> = calls.iter().map(|call| call.took).collect();
    times.sort_unstable();
    times[times.len() * 999 / 1_000].as_secs_f64() * 1e3
}
