//! Thousands of seeds, spread over the threads of the test runner.
//!
//! `SEED=17 cargo test -p simulation` repeats one seed and shows what happened; `SEEDS=100000` runs
//! more of them.

use simulation::{Bites, Violation, run};

/// Seeds of one test; there are eight such tests.
const SEEDS: u64 = 1_300;

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "tests have no settings of their own")]
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("SEED and SEEDS are numbers"))
}

/// Runs one eighth of the seeds.
#[expect(clippy::print_stdout, reason = "how much the faults bit belongs to the proof")]
fn eighth(number: u64) -> Result<(), String> {
    if setting("SEED").is_some() {
        return Ok(());
    }
    let count = setting("SEEDS").map_or(SEEDS, |all| all.div_ceil(8));
    let mut bites = Bites::default();
    let mut violations: Vec<Violation> = Vec::new();
    for seed in number * count..(number + 1) * count {
        match run(seed, None) {
            Ok(bitten) => bites.add(&bitten),
            Err(violation) => violations.push(violation),
        }
    }
    println!("{count} seeds: {bites:?}");
    if let Some(first) = violations.first() {
        let seeds: Vec<u64> = violations.iter().map(|violation| violation.seed).collect();
        return Err(format!(
            "{} of {count} seeds break a promise ({seeds:?}); {first}",
            seeds.len()
        ));
    }
    // Where no fault bites, nothing is proved. Each occurs several times per ten seeds.
    for (what, count_of) in [
        ("crashes", bites.crashes),
        ("unknown commits", bites.unknown_commits),
        ("unknown publications", bites.unknown_publications),
        ("redeliveries", bites.redeliveries),
        ("suppressed duplicates", bites.duplicates_suppressed),
        ("lost leases", bites.leases_lost),
        ("failed handlers", bites.handler_failures),
        ("compensated sagas", bites.compensated),
        ("completed sagas", bites.completed),
    ] {
        if count_of <= count / 4 {
            return Err(format!("only {count_of} {what} in {count} seeds: {bites:?}"));
        }
    }
    Ok(())
}

macro_rules! eighths {
    ($($name:ident: $number:literal),+) => {$(
        #[test]
        fn $name() -> Result<(), String> {
            eighth($number)
        }
    )+};
}

eighths!(
    every_promise_holds_in_the_first_eighth: 0,
    every_promise_holds_in_the_second_eighth: 1,
    every_promise_holds_in_the_third_eighth: 2,
    every_promise_holds_in_the_fourth_eighth: 3,
    every_promise_holds_in_the_fifth_eighth: 4,
    every_promise_holds_in_the_sixth_eighth: 5,
    every_promise_holds_in_the_seventh_eighth: 6,
    every_promise_holds_in_the_last_eighth: 7
);

#[test]
fn one_seed_is_one_run() {
    let seeds = setting("SEED").map_or(20..120, |seed| seed..seed + 1);
    for seed in seeds {
        let (first, again) = (run(seed, None), run(seed, None));
        assert_eq!(first, again, "seed {seed} ran in two ways");
    }
}

#[test]
fn the_seed_that_was_asked_for_breaks_nothing() -> Result<(), Violation> {
    if let Some(seed) = setting("SEED") {
        println!("seed {seed}: {:?}", run(seed, None)?);
    }
    Ok(())
}
