//! The rules of trying again, by tables.

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const UNAVAILABLE: Failure = Failure::Answered(Code::Unavailable, None);

/// The decision about the first failure of a call, with a full budget.
fn first(permission: Permission, failure: Failure, remaining: Duration) -> Decision {
    let mut attempts = Attempts::new(permission, 0);
    RetryPolicy::default().decide(&mut attempts, failure, remaining, 0.5, || true)
}

fn counted(after: Duration) -> Decision {
    Decision::Retry { after, transparent: false }
}

fn transparent(after: Duration) -> Decision {
    Decision::Retry { after, transparent: true }
}

fn unavailable(pushback: Pushback) -> Failure {
    Failure::Answered(Code::Unavailable, Some(pushback))
}

#[test]
fn the_permission_of_the_method_decides_what_is_tried_again() {
    use Permission::{Idempotent, NoSideEffects, NotExecuted, Unavailable};
    let policy = RetryPolicy {
        codes: [Code::Unavailable, Code::Aborted].into_iter().collect(),
        ..RetryPolicy::default()
    };
    let cases = [
        (UNAVAILABLE, [false, true, true, true]),
        (Failure::Answered(Code::Aborted, None), [false, false, true, true]),
        (Failure::Answered(Code::Internal, None), [false; 4]),
        (Failure::NotSent, [true; 4]),
        (Failure::Refused, [true; 4]),
        (Failure::Rejected, [false; 4]),
        (Failure::Committed, [false; 4]),
        (Failure::ReplayOverflow, [false; 4]),
    ];
    for (failure, expected) in cases {
        let tried = [NotExecuted, Unavailable, Idempotent, NoSideEffects].map(|permission| {
            let mut attempts = Attempts::new(permission, 0);
            let decision = policy.decide(&mut attempts, failure, SECOND, 0.5, || true);
            matches!(decision, Decision::Retry { .. })
        });
        assert_eq!(tried, expected, "{failure:?}");
    }
}

#[test]
fn every_reason_to_stop_has_its_name() {
    let idempotent = Permission::Idempotent;
    let cases = [
        (idempotent, UNAVAILABLE, Duration::ZERO, Stop::Expired),
        (idempotent, Failure::NotSent, Duration::ZERO, Stop::Expired),
        (idempotent, UNAVAILABLE, 50 * MS, Stop::NoTime),
        (idempotent, unavailable(Pushback::After(SECOND)), SECOND, Stop::NoTime),
        (idempotent, unavailable(Pushback::Never), SECOND, Stop::PushedBack),
        (idempotent, Failure::Answered(Code::NotFound, None), SECOND, Stop::NotRetryable),
        (Permission::NotExecuted, UNAVAILABLE, SECOND, Stop::NotRetryable),
        (idempotent, Failure::Rejected, SECOND, Stop::Rejected),
        (idempotent, Failure::Committed, SECOND, Stop::Committed),
        (idempotent, Failure::ReplayOverflow, SECOND, Stop::ReplayOverflow),
    ];
    for (permission, failure, remaining, stop) in cases {
        assert_eq!(first(permission, failure, remaining), Decision::Stop(stop), "{failure:?}");
    }
}

#[test]
fn attempts_that_count_end_at_the_maximum_and_no_policy_goes_past_five() {
    for (attempts_max, expected) in [(0, 0), (1, 0), (3, 2), (5, 4), (100, 4)] {
        let policy = RetryPolicy { attempts_max, ..RetryPolicy::default() };
        let mut attempts = Attempts::new(Permission::Idempotent, 0);
        let mut decide = || policy.decide(&mut attempts, UNAVAILABLE, 60 * SECOND, 0.5, || true);
        for again in 0..expected {
            assert_eq!(decide(), counted(50 * MS * 2_u32.pow(again)), "{attempts_max}");
        }
        assert_eq!(decide(), Decision::Stop(Stop::AttemptsUsed), "{attempts_max}");
        assert_eq!(attempts.previous(), expected, "{attempts_max}");
    }
}

#[test]
fn what_never_left_is_sent_again_until_the_deadline_and_costs_nothing() {
    let policy = RetryPolicy { attempts_max: 1, ..RetryPolicy::default() };
    let mut attempts = Attempts::new(Permission::NotExecuted, 0);
    let mut remaining = 10 * SECOND;
    let mut sent = 0;
    let stop = loop {
        let none_left = || panic!("the budget was asked");
        match policy.decide(&mut attempts, Failure::NotSent, remaining, 0.5, none_left) {
            Decision::Retry { after, transparent } => {
                assert!(transparent && (sent == 0) == after.is_zero(), "{after:?}");
                remaining -= after;
                sent += 1;
            }
            Decision::Stop(stop) => break stop,
        }
    };
    assert_eq!((sent, stop), (14, Stop::NoTime));
    assert_eq!(attempts.previous(), 0);
}

#[test]
fn what_was_refused_is_sent_again_once_and_then_counts() {
    let policy = RetryPolicy::default();
    let mut attempts = Attempts::new(Permission::NotExecuted, 0);
    let mut decide = || policy.decide(&mut attempts, Failure::Refused, SECOND, 0.5, || true);
    assert_eq!(decide(), transparent(Duration::ZERO));
    assert_eq!(decide(), counted(50 * MS));
    assert_eq!(decide(), counted(100 * MS));
    assert_eq!(decide(), Decision::Stop(Stop::AttemptsUsed));
}

#[test]
fn pushback_is_the_exact_wait_and_starts_the_backoff_anew() {
    let policy = RetryPolicy { attempts_max: 5, ..RetryPolicy::default() };
    let mut attempts = Attempts::new(Permission::Idempotent, 0);
    let mut decide = |failure| policy.decide(&mut attempts, failure, SECOND, 1.0, || true);
    assert_eq!(decide(UNAVAILABLE), counted(60 * MS));
    assert_eq!(decide(UNAVAILABLE), counted(120 * MS));
    assert_eq!(decide(unavailable(Pushback::After(7 * MS))), counted(7 * MS));
    assert_eq!(decide(UNAVAILABLE), counted(60 * MS));
    assert_eq!(
        first(Permission::Idempotent, unavailable(Pushback::After(Duration::ZERO)), SECOND),
        counted(Duration::ZERO)
    );
}

#[test]
fn an_empty_budget_stops_what_counts_and_only_that() {
    let policy = RetryPolicy::default();
    let decide = |failure| {
        let mut attempts = Attempts::new(Permission::Idempotent, 0);
        policy.decide(&mut attempts, failure, SECOND, 0.5, || false)
    };
    assert_eq!(decide(UNAVAILABLE), Decision::Stop(Stop::BudgetSpent));
    assert_eq!(decide(Failure::NotSent), transparent(Duration::ZERO));
    assert_eq!(decide(Failure::Refused), transparent(Duration::ZERO));
}

#[test]
fn no_token_is_taken_for_an_attempt_that_is_not_made() {
    let policy = RetryPolicy { attempts_max: 1, ..RetryPolicy::default() };
    for (failure, remaining) in [
        (UNAVAILABLE, SECOND),
        (UNAVAILABLE, MS),
        (unavailable(Pushback::Never), SECOND),
        (Failure::Committed, SECOND),
    ] {
        let mut attempts = Attempts::new(Permission::Idempotent, 0);
        let reserve = || panic!("a token was taken");
        let decision = policy.decide(&mut attempts, failure, remaining, 0.5, reserve);
        assert!(matches!(decision, Decision::Stop(_)), "{decision:?}");
    }
}

#[test]
fn a_service_that_works_for_a_second_attempt_leaves_retries_to_its_caller() {
    let policy = RetryPolicy::default();
    let mut attempts = Attempts::new(Permission::Idempotent, 1);
    let mut decide = |failure| policy.decide(&mut attempts, failure, SECOND, 0.5, || true);
    assert_eq!(decide(UNAVAILABLE), Decision::Stop(Stop::CallerRetries));
    assert_eq!(decide(Failure::NotSent), transparent(Duration::ZERO));
    assert_eq!(decide(Failure::Refused), transparent(Duration::ZERO));
}

#[test]
fn callers_are_told_not_to_retry_what_was_retried_or_must_not_be() {
    let never = [Stop::AttemptsUsed, Stop::BudgetSpent, Stop::PushedBack, Stop::Rejected];
    for stop in never {
        assert_eq!(stop.pushback(), Some(Pushback::Never), "{stop:?}");
    }
    for stop in [Stop::Expired, Stop::NoTime, Stop::NotRetryable, Stop::CallerRetries] {
        assert_eq!(stop.pushback(), None, "{stop:?}");
    }
}

#[test]
fn whatever_fails_attempts_stay_within_the_policy_the_budget_and_the_deadline() {
    let mut random = fastrand::Rng::with_seed(4);
    let failures = [
        UNAVAILABLE,
        unavailable(Pushback::After(3 * MS)),
        unavailable(Pushback::Never),
        Failure::Answered(Code::Aborted, None),
        Failure::NotSent,
        Failure::Refused,
        Failure::Rejected,
        Failure::Committed,
        Failure::ReplayOverflow,
    ];
    let mut most = 0;
    for _ in 0..20_000 {
        let attempts_max = random.u32(0..8);
        let policy = RetryPolicy { attempts_max, ..RetryPolicy::default() };
        let mut attempts = Attempts::new(Permission::Idempotent, 0);
        let (mut remaining, mut tokens, mut counting, mut refused) = (2 * SECOND, 2, 0, 0);
        loop {
            let usual = random.f64() < 0.9;
            let failure = failures[if usual { random.usize(0..6) } else { random.usize(0..9) }];
            let before = tokens;
            let reserve = || {
                let some = tokens > 0;
                tokens -= i32::from(some);
                some
            };
            match policy.decide(&mut attempts, failure, remaining, random.f64(), reserve) {
                Decision::Retry { after, transparent } => {
                    assert!(after < remaining);
                    assert_eq!(before - tokens, i32::from(!transparent));
                    counting += u32::from(!transparent);
                    refused += u32::from(transparent && failure == Failure::Refused);
                    remaining = remaining.saturating_sub(after + MS);
                }
                Decision::Stop(_) => {
                    assert_eq!(before, tokens);
                    break;
                }
            }
        }
        assert_eq!(attempts.previous(), counting);
        assert!(counting <= attempts_max.saturating_sub(1).min(2) && refused <= 1);
        most = most.max(counting);
    }
    assert_eq!(most, 2, "some calls used all that they were given");
}
