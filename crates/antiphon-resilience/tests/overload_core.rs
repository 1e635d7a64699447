//! One core, one thread that serves, a handler that computes for a millisecond, and the limits of a
//! server as they stand before each other: what is left under three times the load, in virtual time.
//!
//! The thread does what an event loop does: it reads all requests that have come, lets them in or
//! refuses them, and then works on those that it let in, one after the other, before it reads again.

use std::collections::VecDeque;
use std::time::Duration;

use antiphon_resilience::{
    AdaptiveLimit, CpuGuard, CpuLoad, CpuSettings, CpuUse, LimitSettings, Outcome, Priority,
};
use tokio::time::Instant;

/// How long the handler computes.
const WORK: Duration = Duration::from_millis(1);
/// What it takes to read a call and answer it, besides.
const OVERHEAD: Duration = Duration::from_micros(10);
/// What it takes to read a call and refuse it.
const REFUSAL: Duration = Duration::from_micros(10);
/// Calls per second that can be answered at most.
const CAPACITY: f64 = 990.0;
/// How often the processor is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// Calls that are worked on before requests are read again.
const BATCH: usize = 61;

struct Core {
    origin: Instant,
    now: Duration,
    used: Duration,
    looked: Duration,
    next_arrival: Duration,
    load: CpuLoad,
    guard: CpuGuard,
    limit: AdaptiveLimit,
    /// When the calls that were let in came, and when they were let in.
    queue: VecDeque<(Duration, Duration)>,
    random: fastrand::Rng,
}

/// What came of the calls of one phase.
#[derive(Default)]
struct Seen {
    took: Vec<Duration>,
    refused: usize,
}

impl Seen {
    fn p99(&mut self) -> Duration {
        self.took.sort();
        self.took[self.took.len() * 99 / 100]
    }
}

impl Core {
    fn new() -> Self {
        let origin = Instant::now();
        let unused = CpuUse { cores: 1.0, ..CpuUse::default() };
        Self {
            origin,
            now: Duration::ZERO,
            used: Duration::ZERO,
            looked: Duration::ZERO,
            next_arrival: Duration::ZERO,
            load: CpuLoad::new(CpuSettings::default(), unused, origin),
            guard: CpuGuard::new(origin),
            limit: AdaptiveLimit::new(LimitSettings::default()),
            queue: VecDeque::new(),
            random: fastrand::Rng::with_seed(11),
        }
    }

    fn work(&mut self, time: Duration) {
        self.now += time;
        self.used += time;
        if self.now - self.looked >= LOOK {
            self.look();
        }
    }

    fn look(&mut self) {
        self.looked = self.now;
        let cpu = CpuUse { used: self.used, waited: Duration::ZERO, cores: 1.0 };
        self.load.note(cpu, self.origin + self.now);
    }

    /// Calls come at random, `load` times as many as can be answered.
    fn phase(&mut self, length: Duration, load: f64) -> Seen {
        let (end, mut seen) = (self.now + length, Seen::default());
        while self.now < end {
            while self.next_arrival <= self.now {
                let came = self.next_arrival;
                let pause = -(1.0 - self.random.f64()).ln() / (CAPACITY * load);
                self.next_arrival += Duration::from_secs_f64(pause);
                let now = self.origin + self.now;
                let in_flight = self.limit.in_flight();
                let enters = self.guard.admits(&self.load, Priority::Default, in_flight, now)
                    && self.limit.try_enter();
                if enters {
                    self.queue.push_back((came, self.now));
                    self.work(OVERHEAD);
                } else {
                    seen.refused += 1;
                    self.work(REFUSAL);
                }
            }
            if self.queue.is_empty() {
                self.now = self.next_arrival;
            }
            for _ in 0..BATCH.min(self.queue.len()) {
                let (came, entered) = self.queue.pop_front().expect("counted");
                self.work(WORK);
                let (took, now) = (self.now - entered, self.origin + self.now);
                self.limit.leave(took, now, Outcome::Done);
                self.guard.record(took, now);
                seen.took.push(self.now - came);
            }
        }
        seen
    }
}

#[tokio::test(start_paused = true)]
async fn goodput_and_times_are_kept_under_three_times_the_load() {
    let secs = Duration::from_secs;
    let mut core = Core::new();
    core.phase(secs(5), 0.7);
    let mut normal = core.phase(secs(60), 0.7);
    // The change takes the guard of the processor a second or two to see.
    let mut change = core.phase(secs(2), 3.0);
    let mut overload = core.phase(secs(60), 3.0);
    let goodput = overload.took.len() as f64 / 60.0;
    println!(
        "p99 {:?} normal, {:?} in the first two seconds, {:?} under three times the load; {goodput:.0}/s",
        normal.p99(),
        change.p99(),
        overload.p99()
    );
    assert!(normal.refused < normal.took.len() / 1_000, "{}", normal.refused);
    assert!(goodput > 0.95 * CAPACITY, "{goodput}");
    assert!(overload.p99() <= 3 * normal.p99(), "{:?}, {:?}", overload.p99(), normal.p99());
    core.phase(secs(3), 0.7);
    let mut after = core.phase(secs(30), 0.7);
    assert!(after.p99() <= 2 * normal.p99() && after.refused < after.took.len() / 1_000);
}

#[tokio::test(start_paused = true)]
async fn nearly_all_is_answered_just_below_what_can_be() {
    let mut core = Core::new();
    core.phase(Duration::from_secs(10), 0.7);
    for load in [0.85, 0.95] {
        let seen = core.phase(Duration::from_secs(60), load);
        let part = seen.refused as f64 / (seen.refused + seen.took.len()) as f64;
        println!("{:.2} % refused at {load} of what can be answered", part * 100.0);
        assert!(part < 0.03, "{part}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_starts_into_an_overload_finds_its_way() {
    let mut core = Core::new();
    core.phase(Duration::from_secs(30), 3.0);
    let mut seen = core.phase(Duration::from_secs(30), 3.0);
    println!("p99 {:?} half a minute after a start into three times the load", seen.p99());
    assert!(seen.took.len() as f64 > 0.95 * CAPACITY * 30.0, "{}", seen.took.len());
    assert!(seen.p99() < Duration::from_millis(40), "{:?}", seen.p99());
}
