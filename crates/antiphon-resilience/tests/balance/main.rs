//! Picking instances, as its users see it: where calls go and how long they take. Simulated, see
//! [`world`]; the figures are printed with `--nocapture`.

mod world;

use std::time::Duration;

use antiphon_resilience::balance::{BalanceSettings, Policy};

use world::{Temper, World, p999, percent};

const MILLI: Duration = Duration::from_millis(1);

fn settings(policy: Policy) -> BalanceSettings {
    BalanceSettings { policy, ..BalanceSettings::default() }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn an_instance_that_fails_fast_gets_hardly_any_calls() {
    for (name, before) in [("from the start", 0), ("after a minute", 60)] {
        for (part, most) in [(1.0, 5.0), (0.5, 5.0), (0.1, 10.0)] {
            let mut world = World::new(settings(Policy::PeakEwma), 7);
            for _ in 0..4 {
                world.add(Temper::Steady(5 * MILLI), 100, 1);
            }
            world.add(Temper::Failing(if before > 0 { 0.0 } else { part }), 100, 1);
            if before > 0 {
                let share = percent(&world.run(seconds(before), 1_000.0), 4);
                assert!((15.0..25.0).contains(&share), "{share} % while it works");
                world.change(4, Temper::Failing(part));
            }
            let shares = [1, 60].map(|length| percent(&world.run(seconds(length), 1_000.0), 4));
            // Neither ejected nor connected anew, both of which would let it start afresh.
            world.change(4, Temper::Failing(0.0));
            let after = [6, 30].map(|length| percent(&world.run(seconds(length), 1_000.0), 4));
            println!(
                "{:.0} % of its calls fail {name}: {:.2} % of the first second, {:.3} % of the next \
                 minute; well again: {after:.1?} % at 0-6, 6-36 s",
                100.0 * part,
                shares[0],
                shares[1],
            );
            assert!(shares.iter().all(|&share| share < most), "{shares:?}");
            assert!((15.0..25.0).contains(&after[1]), "{after:?}");
        }
    }
}

/// How many calls each instance works on at a time, and what part of what all five can carry arrives.
#[derive(Clone, Copy)]
struct Place {
    workers: usize,
    load: f64,
}

/// Five instances, of which one is slow or not. Returns the p99.9 in milliseconds and what part of the
/// calls the slow one had, without the first seconds, in which the client learns.
fn with_one_slow(policy: Policy, slow: bool, place: Place, seed: u64) -> (f64, f64) {
    let Place { workers, load } = place;
    let mut world = World::new(settings(policy), seed);
    let mean = 5 * MILLI;
    for instance in 0..5 {
        let mean = if slow && instance == 4 { mean * 20 } else { mean };
        world.add(Temper::Exponential(mean), workers, 1);
    }
    let rate = load * 5.0 * workers as f64 / mean.as_secs_f64();
    world.run(seconds(5), rate);
    let calls = world.run(seconds(20), rate);
    assert_eq!(world.in_flight(), 0);
    (p999(&calls), percent(&calls, 4))
}

#[test]
fn a_slow_instance_does_not_slow_the_rest() {
    println!("p99.9 with one of five instances 20 times as slow, and without:");
    let figures = |policy, place: Place, seed| {
        let (usual, _) = with_one_slow(policy, false, place, seed);
        let (slowed, share) = with_one_slow(policy, true, place, seed);
        println!(
            "{:>2} workers each, {:.0} % load, {policy:?}: {slowed:.1} ms, {usual:.1} ms without \
             ({:.2} times); {share:.3} % of the calls go to the slow one",
            place.workers,
            100.0 * place.load,
            slowed / usual,
        );
        slowed / usual
    };
    // The last is so little that the slow one can carry a fifth of it.
    for (workers, load) in [(4, 0.5), (16, 0.5), (32, 0.03)] {
        let place = Place { workers, load };
        for seed in [11, 12, 13] {
            assert!(figures(Policy::PeakEwma, place, seed) < 1.5);
        }
        assert!(figures(Policy::RoundRobin, place, 11) > 10.0);
    }
}

#[test]
fn a_new_instance_is_neither_starved_nor_flooded() {
    let usual = Temper::Exponential(5 * MILLI);
    for policy in [Policy::PeakEwma, Policy::LeastRequest { choices: 2 }] {
        let mut world = World::new(settings(policy), 5);
        for _ in 0..5 {
            world.add(usual, 8, 1);
        }
        world.run(seconds(30), 3_000.0);
        world.add(usual, 8, 1);
        let shares = [1, 4, 5, 10, 30].map(|length| {
            let calls = world.run(seconds(length), 3_000.0);
            let news: Vec<_> = calls.iter().filter(|call| call.instance == 5).copied().collect();
            assert!(p999(&news) < 60.0, "the new one is overrun: {} ms", p999(&news));
            percent(&calls, 5)
        });
        println!(
            "{policy:?}: a sixth instance has {shares:.1?} % at 0-1, 1-5, 5-10, 10-20, 20-50 s"
        );
        assert!((0.5..6.0).contains(&shares[0]), "{shares:?}");
        assert!((2.0..12.0).contains(&shares[1]), "{shares:?}");
        assert!((7.0..18.0).contains(&shares[2]), "{shares:?}");
        assert!(shares[3..].iter().all(|share| (12.0..22.0).contains(share)), "{shares:?}");
    }
}

#[test]
fn twice_the_weight_carries_twice_the_load() {
    for policy in [Policy::PeakEwma, Policy::LeastRequest { choices: 2 }] {
        let mut world = World::new(settings(policy), 3);
        for (workers, weight) in [(4, 1), (4, 1), (8, 2), (8, 2)] {
            world.add(Temper::Exponential(5 * MILLI), workers, weight);
        }
        world.run(seconds(5), 3_600.0);
        let calls = world.run(seconds(30), 3_600.0);
        let heavy = percent(&calls, 2) + percent(&calls, 3);
        println!("{policy:?}: two of four with twice the weight have {heavy:.1} % at 75 % load");
        assert!((60.0..73.0).contains(&heavy), "{heavy}");
    }
}

/// Each failure drives calls from an instance for a while. Where every instance fails now and then,
/// the others must be able to carry that: two of three at six tenths of the capacity.
#[test]
fn failures_everywhere_do_not_drive_the_load_together() {
    const LOAD: f64 = 0.6;
    for instances in [3, 5, 20] {
        let figures = [0.0, 0.0001, 0.001, 0.01, 0.1].map(|part| {
            let mut world = World::new(settings(Policy::PeakEwma), 9);
            (0..instances).for_each(|_| world.add(Temper::Failing(part), 16, 1));
            let rate = LOAD * f64::from(instances) * 16.0 / 0.005;
            world.run(seconds(1), rate);
            p999(&world.run(seconds(5), rate))
        });
        println!("{instances} instances, none, .01, .1, 1, 10 % fail: p99.9 {figures:.1?} ms");
        assert!(figures.iter().all(|&p999| p999 < 3.0 * figures[0]), "{figures:?}");
    }
}
