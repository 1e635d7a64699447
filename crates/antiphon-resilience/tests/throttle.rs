//! A target that fails everything for a minute, and how soon a throttled caller is back.

use std::time::Duration;

use antiphon_resilience::{Throttle, ThrottleSettings, Verdict};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
/// When the target fails, and for how long.
const OUTAGE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(60));
/// How long the throttle may take to see an outage.
const CLOSING: Duration = Duration::from_secs(3);

/// What came of one run.
#[derive(Debug)]
struct Seen {
    /// The part of the calls that went to the target in the outage, after the throttle had closed.
    leaked: f64,
    /// The part in the whole outage, with the calls by which the throttle saw it.
    leaked_whole: f64,
    /// From the end of the outage to the last refusal.
    recovery: Duration,
}

/// Calls at random times, each over at once: the target accepts all, or none while it is away.
fn outage(calls_per_second: f64, seed: u64) -> Seen {
    let mut random = fastrand::Rng::with_seed(seed);
    let start = Instant::now();
    let throttle = Throttle::new(ThrottleSettings::default(), start);
    let (begins, ends) = (OUTAGE.0, OUTAGE.0 + OUTAGE.1);
    let (mut calls, mut sent) = ([0_u32; 2], [0_u32; 2]);
    let mut last_refusal = ends;
    let mut at = Duration::ZERO;
    while at < ends + 60 * SECOND {
        let now = start + at;
        let away = (begins..ends).contains(&at);
        let closed = usize::from(at >= begins + CLOSING);
        calls[closed] += u32::from(away);
        if throttle.try_admit(now) {
            sent[closed] += u32::from(away);
            throttle.record(if away { Verdict::Failed } else { Verdict::Accepted }, now);
        } else {
            assert!(at >= begins, "nothing is refused before the outage");
            last_refusal = at.max(ends);
        }
        at += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / calls_per_second);
    }
    Seen {
        leaked: f64::from(sent[1]) / f64::from(calls[1]),
        leaked_whole: f64::from(sent[0] + sent[1]) / f64::from(calls[0] + calls[1]),
        recovery: last_refusal - ends,
    }
}

/// The worst of several seeds; fewer where chance plays no part.
#[expect(clippy::print_stdout, reason = "the figures are what the test is for")]
fn worst(calls_per_second: f64) -> Seen {
    let seeds = if calls_per_second > 1_000.0 { 2 } else { 10 };
    let seen: Vec<_> = (1..=seeds).map(|seed| outage(calls_per_second, seed)).collect();
    let most = |part: fn(&Seen) -> f64| seen.iter().map(part).fold(0.0, f64::max);
    let worst = Seen {
        leaked: most(|one| one.leaked),
        leaked_whole: most(|one| one.leaked_whole),
        recovery: seen.iter().map(|one| one.recovery).max().unwrap_or_default(),
    };
    println!(
        "{calls_per_second} calls/s: recovered {:.1} s after the outage, {:.2} % leaked once closed, \
         {:.2} % in the whole outage",
        worst.recovery.as_secs_f64(),
        worst.leaked * 100.0,
        worst.leaked_whole * 100.0
    );
    worst
}

#[test]
fn a_minute_of_outage_is_over_within_ten_seconds_at_any_rate() {
    for calls_per_second in [100.0, 1_000.0, 10_000.0] {
        let worst = worst(calls_per_second);
        assert!(worst.recovery <= 10 * SECOND, "{calls_per_second}: {worst:?}");
        assert!(worst.recovery > SECOND, "there was something to recover from: {worst:?}");
        assert!(worst.leaked <= 0.03, "{calls_per_second}: {worst:?}");
    }
}

#[test]
fn a_target_that_is_called_seldom_is_back_within_twenty_seconds() {
    let worst = worst(20.0);
    assert!(worst.recovery <= 20 * SECOND, "{worst:?}");
    // One call a second of twenty is the least that can be let through.
    assert!(worst.leaked <= 0.08, "{worst:?}");
}

#[test]
fn a_target_that_fails_two_in_five_is_not_throttled() {
    let mut random = fastrand::Rng::with_seed(3);
    let start = Instant::now();
    let throttle = Throttle::new(ThrottleSettings::default(), start);
    let refused = (0..60_000).filter(|call| {
        let now = start + Duration::from_millis(*call);
        let admitted = throttle.try_admit(now);
        if admitted {
            let failed = random.f64() < 0.4;
            throttle.record(if failed { Verdict::Failed } else { Verdict::Accepted }, now);
        }
        !admitted
    });
    assert_eq!(refused.count(), 0);
}
