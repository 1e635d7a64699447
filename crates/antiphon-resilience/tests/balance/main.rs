//! Picking instances, as its users see it: where calls go and how long they take. Simulated, see
//! [`world`]; the figures are printed with `--nocapture`.

mod world;

use std::time::Duration;

use antiphon_resilience::balance::{BalanceSettings, Policy};

use world::{Ended, Temper, World, p999, percent};

const MILLI: Duration = Duration::from_millis(1);

fn settings(policy: Policy) -> BalanceSettings {
    BalanceSettings { policy, ..BalanceSettings::default() }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn an_instance_that_fails_fast_gets_hardly_any_calls() {
    for (name, failing_from_the_start) in [("from the start", true), ("after a minute", false)] {
        let mut world = World::new(settings(Policy::PeakEwma), 7);
        for _ in 0..5 {
            world.add(Temper::Steady(5 * MILLI), 100, 1);
        }
        if !failing_from_the_start {
            let before = world.run(seconds(60), 1_000.0);
            let share = percent(&before, 4);
            assert!((15.0..25.0).contains(&share), "{share} % while it works");
        }
        world.change(4, Temper::Failing(Duration::from_micros(50)));
        let first = world.run(seconds(1), 1_000.0);
        let later = world.run(seconds(60), 1_000.0);
        let (first, later) = (percent(&first, 4), percent(&later, 4));
        println!(
            "failing {name}: {first:.2} % of the first second, {later:.3} % of the next minute"
        );
        assert!(first < 5.0 && later < 0.1, "{first} {later}");
    }
}

/// Five instances, of which one is slow or not; the first seconds, in which clients learn, apart.
fn with_one_slow(policy: Policy, slow: bool, workers: usize, load: f64) -> (f64, f64, f64) {
    let mut world = World::new(settings(policy), 11);
    let mean = 5 * MILLI;
    for instance in 0..5 {
        let mean = if slow && instance == 4 { mean * 20 } else { mean };
        world.add(Temper::Exponential(mean), workers, 1);
    }
    let rate = load * 5.0 * workers as f64 / mean.as_secs_f64();
    let calls = world.run(seconds(5), rate);
    let first = p999(&calls);
    let calls = world.run(seconds(60), rate);
    (first, p999(&calls), percent(&calls, 4))
}

#[test]
fn a_slow_instance_does_not_slow_the_rest() {
    for workers in [1, 4, 16, 64] {
        for load in [0.1, 0.3, 0.5, 0.6] {
            for policy in
                [Policy::PeakEwma, Policy::LeastRequest { choices: 2 }, Policy::RoundRobin]
            {
                let good = with_one_slow(policy, false, workers, load);
                let bad = with_one_slow(policy, true, workers, load);
                println!("{workers} {load} {policy:?} {good:.1?} {bad:.1?} {:.2}", bad.1 / good.1);
            }
        }
    }
}
