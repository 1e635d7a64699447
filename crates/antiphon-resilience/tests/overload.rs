//! A service under more load than it can carry, simulated: events in virtual time, no clock, one
//! seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use antiphon_resilience::{
    AdaptiveLimit, CpuGuard, CpuLoad, CpuSettings, CpuUse, LimitSettings, Outcome, Priority,
};
use tokio::time::Instant;

/// What the service can work on at the same time.
const WORKERS: usize = 4;
/// How long one call takes when it is worked on.
const SERVICE: Duration = Duration::from_millis(10);
/// What the workers have used at the start.
const UNUSED: CpuUse =
    CpuUse { used: Duration::ZERO, waited: Duration::ZERO, cores: WORKERS as f64 };
/// What callers wait at most.
const PATIENCE: Duration = Duration::from_millis(200);
/// Calls per second that the service can answer at most.
const CAPACITY: f64 = 400.0;

/// What came of the calls of one phase.
#[derive(Debug, Default)]
struct Seen {
    /// Answered in time.
    good: u32,
    /// Refused at once.
    refused: u32,
    /// Given up by the caller after having waited.
    late: u32,
}

/// What lets calls in.
trait Gate {
    /// `cpu_time` is what the workers have used until now.
    fn enter(&self, in_flight: usize, cpu_time: Duration, now: Instant) -> bool;
    fn leave(&self, took: Duration, in_time: bool, now: Instant);
}

impl Gate for AdaptiveLimit {
    fn enter(&self, _: usize, _: Duration, _: Instant) -> bool {
        self.try_enter()
    }

    fn leave(&self, took: Duration, in_time: bool, now: Instant) {
        let outcome = if in_time { Outcome::Done } else { Outcome::TimedOut };
        AdaptiveLimit::leave(self, took, now, outcome);
    }
}

/// The processor is looked at with each call, which is more often than needed.
struct Cpu {
    load: CpuLoad,
    guard: CpuGuard,
}

impl Gate for Cpu {
    fn enter(&self, in_flight: usize, cpu_time: Duration, now: Instant) -> bool {
        self.load.note(CpuUse { used: cpu_time, ..UNUSED }, now);
        self.guard.admits(&self.load, Priority::Default, in_flight as u32, now)
    }

    fn leave(&self, took: Duration, _: bool, now: Instant) {
        self.guard.record(took, now);
    }
}

struct Open;

impl Gate for Open {
    fn enter(&self, _: usize, _: Duration, _: Instant) -> bool {
        true
    }

    fn leave(&self, _: Duration, _: bool, _: Instant) {}
}

/// First come, first served, `WORKERS` at a time. A caller who has given up is still worked for: the
/// service does not know.
struct Service<'a> {
    gate: &'a dyn Gate,
    origin: Instant,
    /// All work that was taken on.
    taken: Duration,
    /// When each worker is free.
    free: BinaryHeap<Reverse<Duration>>,
    /// Calls that were let in, by when they end.
    ending: BinaryHeap<Reverse<(Duration, Duration)>>,
}

impl<'a> Service<'a> {
    fn new(gate: &'a dyn Gate, origin: Instant) -> Self {
        let free = (0..WORKERS).map(|_| Reverse(Duration::ZERO)).collect();
        Self { gate, origin, taken: Duration::ZERO, free, ending: BinaryHeap::new() }
    }

    /// The work that was done by `now`.
    fn cpu_time(&self, now: Duration) -> Duration {
        let ahead = self.free.iter().map(|Reverse(free)| free.saturating_sub(now));
        self.taken - ahead.sum::<Duration>()
    }

    /// Ends the calls that are over by `now`.
    fn settle(&mut self, now: Duration, seen: &mut Seen) {
        while let Some(&Reverse((end, begun))) = self.ending.peek() {
            if end > now {
                break;
            }
            self.ending.pop();
            let took = end - begun;
            let in_time = took <= PATIENCE;
            if in_time {
                seen.good += 1
            } else {
                seen.late += 1
            }
            self.gate.leave(took, in_time, self.origin + end);
        }
    }

    fn call(&mut self, now: Duration, seen: &mut Seen) {
        self.settle(now, seen);
        if !self.gate.enter(self.ending.len(), self.cpu_time(now), self.origin + now) {
            seen.refused += 1;
            return;
        }
        let Reverse(free) = self.free.pop().expect("there is a worker");
        let end = free.max(now) + SERVICE;
        self.taken += SERVICE;
        self.free.push(Reverse(end));
        self.ending.push(Reverse((end, now)));
    }

    /// Calls arrive at random, `load` times as many as the service can answer.
    fn phase(
        &mut self,
        from: Duration,
        length: Duration,
        load: f64,
        random: &mut fastrand::Rng,
    ) -> Seen {
        let mut seen = Seen::default();
        let mut now = from;
        while now < from + length {
            now += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / (CAPACITY * load));
            self.call(now, &mut seen);
        }
        seen
    }
}

fn settings() -> LimitSettings {
    LimitSettings { initial: 20, min: 4, max: 2_000, ..LimitSettings::default() }
}

#[tokio::test(start_paused = true)]
async fn goodput_is_kept_under_three_times_the_load() {
    let limit = AdaptiveLimit::new(settings());
    let mut service = Service::new(&limit, Instant::now());
    let mut random = fastrand::Rng::with_seed(7);
    let secs = Duration::from_secs;
    let normal = service.phase(secs(0), secs(30), 0.7, &mut random);
    assert!(f64::from(normal.refused) < 0.02 * f64::from(normal.good), "{normal:?}");
    let overload = service.phase(secs(30), secs(60), 3.0, &mut random);
    let goodput = f64::from(overload.good) / 60.0;
    assert!(goodput > 0.95 * CAPACITY, "{goodput} {overload:?}");
    assert!(f64::from(overload.late) < 0.02 * f64::from(overload.good), "{overload:?}");
    let after = service.phase(secs(90), secs(30), 0.7, &mut random);
    assert!(f64::from(after.refused + after.late) < 0.02 * f64::from(after.good), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_goodput_collapses() {
    let mut service = Service::new(&Open, Instant::now());
    let mut random = fastrand::Rng::with_seed(7);
    let overload = service.phase(Duration::ZERO, Duration::from_secs(60), 3.0, &mut random);
    assert!(f64::from(overload.good) / 60.0 < 0.05 * CAPACITY, "{overload:?}");
}

#[test]
fn a_guard_of_the_processor_alone_keeps_the_goodput() {
    let start = Instant::now();
    let load = CpuLoad::new(CpuSettings::default(), UNUSED, start);
    let gate = Cpu { load, guard: CpuGuard::new(start) };
    let mut service = Service::new(&gate, start);
    let mut random = fastrand::Rng::with_seed(7);
    let secs = Duration::from_secs;
    let normal = service.phase(secs(0), secs(30), 0.6, &mut random);
    assert_eq!((normal.refused, normal.late), (0, 0), "{normal:?}");
    // The time in which the load is seen.
    service.phase(secs(30), secs(5), 3.0, &mut random);
    let overload = service.phase(secs(35), secs(60), 3.0, &mut random);
    let goodput = f64::from(overload.good) / 60.0;
    println!("{goodput:.0} of {CAPACITY} calls/s answered in time, {} late", overload.late);
    assert!(goodput > 0.95 * CAPACITY, "{goodput} {overload:?}");
    assert!(f64::from(overload.late) < 0.02 * f64::from(overload.good), "{overload:?}");
    let after = service.phase(secs(95), secs(30), 0.6, &mut random);
    assert!(f64::from(after.refused + after.late) < 0.02 * f64::from(after.good), "{after:?}");
}
