//! One slow instance of five: what hedging does to the slowest calls, and what it costs.

use std::time::Duration;

use antiphon_resilience::{Hedge, HedgeSettings, Permission};
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);
const CALLS: u32 = 60_000;

/// What calls took, sorted, and how many attempts were made beyond the first.
struct Seen {
    took: Vec<Duration>,
    extra: u32,
}

impl Seen {
    fn quantile(&self, quantile: f64) -> Duration {
        self.took[(self.took.len() as f64 * quantile) as usize]
    }

    fn extra_part(&self) -> f64 {
        f64::from(self.extra) / f64::from(CALLS)
    }
}

/// A thousand calls a second to instances that take 8 to 12 ms; `slow` of a hundred attempts take
/// twenty times as long.
fn run(hedge: Option<&Hedge>, slow: u32, start: Instant) -> Seen {
    let mut random = fastrand::Rng::with_seed(9);
    let mut attempt = || {
        let usual = 8 * MS + random.u32(0..4_000) * Duration::from_micros(1);
        if random.u32(0..100) < slow { usual * 20 } else { usual }
    };
    let mut extra = 0;
    let mut took: Vec<_> = (0..CALLS)
        .map(|call| {
            let now = start + call * MS;
            let first = attempt();
            let Some(hedge) = hedge else { return first };
            let delay = hedge.begin(now, 0.0);
            let late = delay.filter(|delay| first > *delay && hedge.try_send(now + *delay, 0.0));
            let answer = late.map_or(first, |delay| {
                extra += 1;
                let second = attempt();
                let answer = first.min(delay + second);
                hedge.record(answer - delay);
                answer
            });
            hedge.record(answer);
            answer
        })
        .collect();
    took.sort_unstable();
    Seen { took, extra }
}

#[test]
fn hedging_shortens_the_slowest_calls_for_five_in_a_hundred_more() {
    let start = Instant::now();
    let hedge = Hedge::new(HedgeSettings::default(), Permission::NoSideEffects, start).unwrap();
    let (without, with) = (run(None, 4, start), run(Some(&hedge), 4, start));
    let (before, after) = (without.quantile(0.99), with.quantile(0.99));
    println!(
        "p99 {before:?} without hedging, {after:?} with {:.2} % more attempts",
        with.extra_part() * 100.0
    );
    assert!(after * 4 < before, "{before:?} {after:?}");
    assert!(with.extra_part() <= 0.05, "{}", with.extra_part());
}

#[test]
fn a_target_that_becomes_slow_is_not_asked_twice_for_everything() {
    let start = Instant::now();
    let hedge = Hedge::new(HedgeSettings::default(), Permission::NoSideEffects, start).unwrap();
    run(Some(&hedge), 0, start);
    let slow = run(Some(&hedge), 60, start + CALLS * MS);
    println!("{:.2} % more attempts at a slow target", slow.extra_part() * 100.0);
    assert!(slow.extra_part() <= 0.05, "{}", slow.extra_part());
}
