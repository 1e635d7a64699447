//! Shares of several instances over one store, in simulated time.

use super::*;

const MS: u64 = 1_000_000;
const HUNDRED: RateSettings = RateSettings { per_second: 100.0, burst: 20 };

fn granted(granted: u32, wait_ms: u64) -> Taken {
    Taken { granted, wait: Duration::from_millis(wait_ms) }
}

/// A call that waits, and the question that comes of it, answered at once.
fn fetch(share: &mut Share, rate: &RateSettings, now: u64, grant: u32, wait_ms: u64) -> u32 {
    assert_eq!(share.enter(now), Entry::Waits);
    assert!(share.begins_asking(now));
    let wanted = share.ask(rate, now);
    share.answered(rate, granted(grant.min(wanted), wait_ms), now);
    wanted
}

#[test]
fn calls_wait_for_one_question_and_enter_when_it_is_answered() {
    let mut share = Share::default();
    for call in 0..3 {
        assert_eq!(share.enter(0), Entry::Waits);
        assert_eq!(share.begins_asking(0), call == 0, "one asks for all");
    }
    assert_eq!(share.ask(&HUNDRED, 0), 3);
    assert_eq!(share.enter(MS), Entry::Waits, "it came after the question was sent");
    share.answered(&HUNDRED, granted(3, 0), 2 * MS);
    let entries = [(); 4].map(|()| share.enter(2 * MS));
    assert_eq!(entries, [Entry::In, Entry::In, Entry::In, Entry::Waits]);
    assert!(share.begins_asking(2 * MS));
}

#[test]
fn a_store_that_has_nothing_is_not_asked_before_it_has() {
    let mut share = Share::default();
    assert_eq!(fetch(&mut share, &HUNDRED, 0, 0, 30), 1);
    assert_eq!(share.enter(0), Entry::Refused(30 * MS));
    assert_eq!(share.enter(29 * MS), Entry::Refused(MS));
    assert!(!share.begins_asking(29 * MS));
    assert_eq!(share.enter(30 * MS), Entry::Waits);
    assert!(share.begins_asking(30 * MS));
    // At high rates there is one a moment later, but a question for each call is too many.
    let fast = RateSettings { per_second: 100_000.0, burst: 1_000 };
    let mut share = Share::default();
    fetch(&mut share, &fast, 0, 0, 0);
    assert_eq!(share.enter(0), Entry::Refused(5 * MS));
    // Unless what comes meanwhile would not fit.
    let flat = RateSettings { burst: 10, ..fast };
    let mut share = Share::default();
    fetch(&mut share, &flat, 0, 0, 0);
    assert_eq!(share.enter(0), Entry::Refused(50_000));
}

#[test]
fn a_part_of_a_batch_is_let_in_before_the_rest_is_refused() {
    let mut share = Share::default();
    (0..5).for_each(|_| assert_eq!(share.enter(0), Entry::Waits));
    assert!(share.begins_asking(0));
    assert_eq!(share.ask(&HUNDRED, 0), 5);
    share.answered(&HUNDRED, granted(2, 10), MS);
    let entries = [(); 3].map(|()| share.enter(MS));
    assert_eq!(entries, [Entry::In, Entry::In, Entry::Refused(10 * MS)]);
}

#[test]
fn what_was_taken_is_lost_when_its_time_is_over() {
    // When the answer came, and until when it is good.
    for (came, good) in [(1, 100), (50, 100), (60, 110), (700, 750)] {
        let mut share = Share::default();
        assert_eq!(share.enter(0), Entry::Waits);
        assert!(share.begins_asking(0));
        share.ask(&HUNDRED, 0);
        share.answered(&HUNDRED, granted(1, 0), came * MS);
        assert!(!share.is_idle((good - 1) * MS));
        assert_eq!({ share }.enter((good - 1) * MS), Entry::In);
        assert_eq!(share.enter(good * MS), Entry::Waits);
    }
}

#[test]
fn rare_calls_take_one_each_and_frequent_ones_take_more_ahead() {
    let mut share = Share::default();
    let second = 1_000 * MS;
    let rare: Vec<_> = (1..4).map(|n| fetch(&mut share, &HUNDRED, n * second, 9, 0)).collect();
    assert_eq!(rare, [1, 1, 1]);
    // Ten milliseconds apart, each time all is used: twice as many, up to what the rate gives in the
    // time that a batch is good for.
    let mut now = 10 * second;
    let mut wanted = Vec::new();
    while wanted.len() < 6 {
        now += MS / 10;
        match share.enter(now) {
            Entry::Waits => {
                assert!(share.begins_asking(now));
                wanted.push(share.ask(&HUNDRED, now));
                share.answered(&HUNDRED, granted(*wanted.last().unwrap(), 0), now);
            }
            entry => assert_eq!(entry, Entry::In),
        }
    }
    assert_eq!(wanted, [1, 2, 4, 8, 10, 10]);
}

#[test]
fn more_are_asked_for_before_the_last_is_gone() {
    let mut share = Share::default();
    for n in 0..4 {
        fetch(&mut share, &HUNDRED, n, 10, 0);
        while share.lots.iter().any(|lot| lot.calls > 0) && n < 3 {
            assert_eq!(share.enter(n), Entry::In);
        }
    }
    assert_eq!(share.batch, 8);
    let asked = (1..=8).find(|_| share.enter(10) == Entry::In && share.begins_asking(10));
    assert_eq!(asked, Some(6), "a quarter is left");
    share.ask(&HUNDRED, 10);
    assert_eq!(share.enter(10), Entry::In, "no call waits for it");
}

#[test]
fn a_slow_limit_is_not_asked_for_what_nobody_wants() {
    let slow = RateSettings { per_second: 1.0, burst: 20 };
    let mut share = Share::default();
    for now in [1, 2] {
        (0..8).for_each(|_| assert_eq!(share.enter(now), Entry::Waits));
        assert!(share.begins_asking(now));
        assert_eq!(share.ask(&slow, now), 8);
        share.answered(&slow, granted(8, 0), now);
        (0..8).for_each(|_| assert_eq!(share.enter(now), Entry::In));
        assert!(!share.begins_asking(now));
    }
}

#[test]
fn a_question_that_failed_can_be_asked_again() {
    let mut share = Share::default();
    assert_eq!(share.enter(0), Entry::Waits);
    assert!(share.begins_asking(0) && !share.begins_probing());
    assert!(!share.is_idle(10_000 * MS));
    share.failed();
    assert!(!share.begins_asking(0), "nobody waits any more");
    assert!(share.begins_probing() && !share.begins_probing());
    share.ask(&HUNDRED, 0);
    share.answered(&HUNDRED, granted(1, 0), 0);
    assert!(!share.is_idle(199 * MS) && share.is_idle(200 * MS));
}

/// Instances that get so many calls a second each, at even distances, a store that one round trip
/// takes `trip` to ask: when calls were let in, and how often the store was asked.
fn simulate(rate: RateSettings, calls: &[u32], trip: u64, length: u64) -> (Vec<u64>, u32) {
    const STEP: u64 = MS / 20;
    let mut store = 0;
    let (mut let_in, mut questions) = (Vec::new(), 0);
    let mut shares = vec![Share::default(); calls.len()];
    let mut waiting = vec![0_u32; calls.len()];
    // When the store has the question, and when the instance has the answer.
    let mut asked: Vec<Option<(u64, u32)>> = vec![None; calls.len()];
    let mut answers: Vec<Option<(u64, Taken)>> = vec![None; calls.len()];
    for step in 1..=length / STEP {
        let now = step * STEP;
        for (n, share) in shares.iter_mut().enumerate() {
            if let Some((at, wanted)) = asked[n].filter(|(at, _)| *at <= now) {
                let (then, taken) = rate.take(store, at, wanted);
                (store, asked[n], answers[n]) = (then, None, Some((at + trip / 2, taken)));
            }
            let mut come = 0;
            if let Some((_, taken)) = answers[n].filter(|(at, _)| *at <= now) {
                share.answered(&rate, taken, now);
                answers[n] = None;
                come += std::mem::take(&mut waiting[n]);
            }
            let by = |now: u64| now * u64::from(calls[n]) / 1_000_000_000;
            come += u32::try_from(by(now) - by(now - STEP)).unwrap();
            for _ in 0..come {
                match share.enter(now) {
                    Entry::In => let_in.push(now),
                    Entry::Refused(_) => {}
                    Entry::Waits => waiting[n] += 1,
                }
                if share.begins_asking(now) {
                    asked[n] = Some((now + trip / 2, share.ask(&rate, now)));
                    questions += 1;
                }
            }
        }
    }
    (let_in, questions)
}

/// The most that were let in within any time of this length.
fn most_within(let_in: &[u64], length: u64) -> usize {
    let mut first = 0;
    let within = |(last, at): (usize, &u64)| {
        while let_in[first] + length < *at {
            first += 1;
        }
        last + 1 - first
    };
    let_in.iter().enumerate().map(within).max().unwrap_or(0)
}

#[test]
fn together_they_let_in_what_the_limit_says() {
    const SECOND: u64 = 1_000 * MS;
    for (per_second, burst, calls) in [
        (100.0, 20, &[400, 400, 400][..]),
        (100.0, 20, &[2_000, 30]),
        (5.0, 10, &[50, 50, 50, 50, 50]),
        (2_000.0, 2_000, &[3_000, 3_000]),
        (2_000.0, 100, &[4_000, 500, 10]),
        (1.0, 1, &[20, 20]),
    ] {
        let rate = RateSettings { per_second, burst };
        let (let_in, questions) = simulate(rate, calls, MS / 2, 10 * SECOND);
        for seconds in [1, 3, 9] {
            let most = most_within(&let_in, seconds * SECOND);
            let allowed = per_second * (seconds as f64 + LEASE.as_secs_f64()) + f64::from(burst);
            assert!(most as f64 <= allowed + 1.0, "{rate:?} {calls:?}: {most} in {seconds} s");
        }
        // All that there is is used: little is lost in batches.
        let all = per_second * 10.0 + f64::from(burst);
        assert!(let_in.len() as f64 >= 0.93 * all - 1.0, "{rate:?} {calls:?}: {}", let_in.len());
        let most = calls.len() * 10 * 200;
        assert!(questions as usize <= most, "{rate:?} {calls:?}: {questions}");
    }
}

#[test]
fn below_the_limit_no_call_is_refused_and_few_ask() {
    let rate = RateSettings { per_second: 10_000.0, burst: 10_000 };
    let (let_in, questions) = simulate(rate, &[3_000, 3_000, 20], MS / 2, 1_000 * MS * 5);
    assert!(let_in.len() >= 5 * 6_020 - 3, "{}", let_in.len());
    assert!(questions <= 5 * (30 + 30 + 20), "{questions}");
}
