//! Three layers of services above a target that fails everything: how many attempts reach it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use antiphon_core::Code;
use antiphon_resilience::retry::{Decision, Failure, Pushback};
use antiphon_resilience::{Attempts, Budget, BudgetSettings, Permission, RetryPolicy};
use tokio::time::Instant;

/// Layers that call the next one, the last of which calls the target.
const LAYERS: usize = 3;
const CALLS_PER_SECOND: u32 = 1_000;
const CALLS: u32 = 30 * CALLS_PER_SECOND;
const DEADLINE: Duration = Duration::from_secs(10);

/// What the layers tell each other.
#[derive(Clone, Copy, Debug)]
struct Manners {
    /// Attempts carry their number.
    header: bool,
    /// A layer that gives up tells its caller not to try again.
    pushback: bool,
    budget: bool,
}

/// One call, with the attempts of each layer that is working for it.
#[derive(Clone, Debug)]
struct Call {
    begun: Instant,
    layers: Vec<Attempts>,
}

/// How many attempts reach the target for one original call.
fn attempts_per_call(manners: Manners) -> f64 {
    let mut random = fastrand::Rng::with_seed(11);
    let start = Instant::now();
    let policy = RetryPolicy::default();
    let budgets: Vec<_> = (0..LAYERS).map(|_| Budget::new(BudgetSettings::RETRY, start)).collect();
    let mut calls: Vec<_> = (0..CALLS)
        .map(|n| start + Duration::from_secs(1) * n / CALLS_PER_SECOND)
        .map(|begun| Call { begun, layers: Vec::new() })
        .collect();
    let mut due: BinaryHeap<_> = (0..calls.len()).map(|n| Reverse((calls[n].begun, n))).collect();
    let mut reached = 0_u32;
    while let Some(Reverse((now, n))) = due.pop() {
        let call = &mut calls[n];
        // Down to the target: each layer that was not working yet makes its first attempt.
        for budget in budgets.iter().skip(call.layers.len()) {
            let above = call.layers.last().map_or(0, Attempts::previous);
            let inherited = if manners.header { above } else { 0 };
            let attempts = Attempts::new(Permission::Idempotent, inherited);
            if attempts.previous() == 0 {
                budget.count_call(now);
            }
            call.layers.push(attempts);
        }
        reached += 1;
        // Up again: the first layer that tries once more ends the way.
        let mut pushback = None;
        for (layer, budget) in budgets.iter().enumerate().rev() {
            let attempts = &mut call.layers[layer];
            let remaining = DEADLINE.saturating_sub(now - call.begun);
            let failure = Failure::Answered(Code::Unavailable, pushback);
            let reserve = || !manners.budget || budget.try_spend(now);
            match policy.decide(attempts, failure, remaining, random.f64(), reserve) {
                Decision::Retry { after, .. } => {
                    due.push(Reverse((now + after, n)));
                    break;
                }
                Decision::Stop(stop) => {
                    let said: Option<Pushback> = stop.pushback();
                    pushback = if manners.pushback { said } else { None };
                    call.layers.truncate(layer);
                }
            }
        }
    }
    f64::from(reached) / f64::from(CALLS)
}

#[test]
fn the_target_sees_at_most_a_fifth_more_than_the_original_calls() {
    let full = Manners { header: true, pushback: true, budget: true };
    let cases = [
        ("neither budget nor manners", Manners { header: false, pushback: false, budget: false }),
        ("a budget in each layer", Manners { header: false, pushback: false, ..full }),
        ("with numbered attempts", Manners { pushback: false, ..full }),
        ("and pushback too", full),
    ];
    let [none, budgets, headers, all] = cases.map(|(name, manners)| {
        let seen = attempts_per_call(manners);
        println!("{name}: {seen:.3} attempts per call reach the target");
        seen
    });
    assert!(none > 26.0, "three layers of three attempts multiply: {none}");
    assert!(budgets > 1.5, "budgets multiply, too: {budgets}");
    assert!(headers <= 1.6, "with numbers they only add up: {headers}");
    assert!(all <= 1.2, "{all}");
    assert!(all > 1.1, "the layer next to the failure did try: {all}");
}

#[test]
fn pushback_alone_bounds_the_layers_above_one_that_knows_no_headers() {
    let seen = attempts_per_call(Manners { header: false, pushback: true, budget: true });
    assert!(seen <= 1.2, "{seen}");
}
