//! What a pick costs: `cargo run --release -p antiphon-resilience --example pick`.
#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use antiphon_resilience::balance::{
    BalanceSettings, Candidate, EwmaSettings, InFlight, Load, PickInput, Policy, Roster, Standing,
    stable_hash,
};
use tokio::time::Instant;

/// Short rounds and many: what else runs on the machine then spoils few of them.
const PICKS: u64 = 1_000;
const ROUNDS: usize = 2_001;

struct Instance {
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

fn roster(policy: Policy, count: u32, weighted: bool, now: Instant) -> Roster<Arc<Instance>> {
    let long_ago = now - Duration::from_secs(60);
    let instances: Vec<_> = (0..count)
        .map(|at| {
            let load = Load::new(&EwmaSettings::default(), long_ago);
            load.set_standing(Standing::Ready, long_ago);
            let weight = if weighted { 1 + at % 7 } else { 1 };
            Arc::new(Instance { id: format!("10.0.{}.{}:8080", at / 250, at % 250), weight, load })
        })
        .collect();
    // What has been going on: latencies are known, and some calls are in flight.
    for (at, instance) in instances.iter().enumerate() {
        let took = Duration::from_micros(1_000 + 37 * (at as u64 % 101));
        InFlight::begin(instance, now - took).answered(now);
        if at % 3 == 0 {
            std::mem::forget(InFlight::begin(Arc::clone(instance), now));
        }
    }
    let settings = BalanceSettings { policy, ..BalanceSettings::default() };
    Roster::new(instances, settings, now, 7)
}

/// Nanoseconds per pick.
fn measure(roster: &Roster<Arc<Instance>>, now: Instant) -> f64 {
    let in_flight = roster.candidates().iter().map(|one| one.load().in_flight()).sum();
    let mut call = 0_u64;
    median(PICKS, || {
        call += 1;
        let random = call.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut input = PickInput::new(now + Duration::from_micros(call), random);
        input.key = Some(random);
        input.in_flight = Some(in_flight);
        black_box(roster.pick(black_box(&input)));
    })
}

/// Nanoseconds of one of `times`, in the median round.
fn median(times: u64, mut what: impl FnMut()) -> f64 {
    let mut rounds: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            (0..times).for_each(|_| what());
            begun.elapsed().as_nanos() as f64 / times as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn main() {
    let now = Instant::now();
    let policies = [
        ("peak EWMA", Policy::PeakEwma, false),
        ("peak EWMA, weights", Policy::PeakEwma, true),
        ("round robin", Policy::RoundRobin, false),
        ("weighted round robin", Policy::WeightedRoundRobin, true),
        ("least request", Policy::LeastRequest { choices: 2 }, false),
        ("consistent hash", Policy::ConsistentHash { bound: f32::INFINITY }, false),
        ("consistent hash, bounded", Policy::ConsistentHash { bound: 1.25 }, false),
    ];
    println!("{:<26}{:>10}{:>10}{:>10}", "ns per pick", 5, 100, 1_000);
    for (name, policy, weighted) in policies {
        print!("{name:<26}");
        for count in [5, 100, 1_000] {
            print!("{:>10.1}", measure(&roster(policy, count, weighted, now), now));
        }
        println!();
    }
    for policy in [Policy::PeakEwma, Policy::ConsistentHash { bound: 1.25 }] {
        let stale = roster(policy, 1_000, false, now);
        for one in stale.candidates().iter().step_by(2) {
            one.load().set_standing(Standing::Away, now);
        }
        let picks = measure(&stale, now);
        println!("{policy:?}, 1,000 instances of which half went away since: {picks:.1} ns");
    }
    let all = roster(Policy::PeakEwma, 1_000, false, now);
    let mut call = 0;
    let whole = median(PICKS, || {
        call += 1;
        let begun = now + Duration::from_micros(call);
        if let Some(instance) = all.pick(&PickInput::new(begun, call)) {
            let flight = InFlight::begin(Arc::clone(instance), begun);
            flight.answered(begun + Duration::from_millis(2));
        }
    });
    println!("peak EWMA, 1,000 instances, from the pick to the end of the call: {whole:.1} ns");
    let key = "a key of usual length: customer/4711";
    let hash = median(PICKS, || _ = black_box(stable_hash(black_box(key.as_bytes()))));
    println!("hash of a key: {hash:.1} ns");
    for policy in [Policy::PeakEwma, Policy::ConsistentHash { bound: 1.25 }] {
        let old = roster(policy, 1_000, false, now);
        let settings = old.settings();
        let built =
            median(20, || _ = black_box(Roster::new(old.candidates(), settings.clone(), now, 7)));
        let refreshed = median(20, || _ = black_box(old.refreshed(now, 7)));
        let (built, refreshed) = (built / 1e3, refreshed / 1e3);
        println!(
            "{policy:?}, 1,000 instances: built in {built:.1} µs, refreshed in {refreshed:.1} µs"
        );
    }
}
