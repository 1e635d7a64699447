//! Out, tried, and in again.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A target with so many instances.
struct Target {
    ejector: Ejector,
    start: Instant,
    instances: Vec<Health>,
}

impl Target {
    fn new(instances: usize) -> Self {
        let start = Instant::now();
        let instances = (0..instances).map(|_| Health::new(start)).collect();
        Self { ejector: Ejector::new(EjectionSettings::default()), start, instances }
    }

    /// What the stack of a client does when an attempt ends.
    fn end(&self, instance: usize, verdict: Verdict, at: Duration) -> bool {
        let health = &self.instances[instance];
        self.ejector.record(health, verdict)
            && self.ejector.try_eject(health, &self.instances, self.start + at, 0.0)
    }

    fn fail(&self, instance: usize, times: u32, at: Duration) {
        for _ in 0..times {
            self.end(instance, Verdict::Failed, at);
        }
    }

    fn in_service(&self) -> usize {
        self.instances.iter().filter(|health| health.in_service()).count()
    }

    fn probe(&self, at: Duration) -> Option<Probe> {
        self.ejector.try_probe(&self.instances[0], self.start + at, Duration::ZERO)
    }

    fn end_probe(&self, probe: Probe, verdict: Verdict, at: Duration) -> bool {
        self.ejector.end_probe(&self.instances[0], probe, verdict, self.start + at, 0.0)
    }
}

#[test]
fn five_failures_in_a_row_put_an_instance_out_and_four_do_not() {
    let target = Target::new(5);
    target.fail(0, 4, SECOND);
    target.end(0, Verdict::Accepted, SECOND);
    target.fail(0, 4, SECOND);
    target.end(0, Verdict::Neutral, SECOND);
    assert!(target.instances[0].in_service());
    assert!(target.end(0, Verdict::Failed, SECOND));
    assert!(!target.instances[0].in_service());
}

#[test]
fn an_instance_that_sheds_load_stays_in_service() {
    let target = Target::new(5);
    (0..1_000).for_each(|_| assert!(!target.end(0, Verdict::Shed, SECOND)));
    // Nor is it compared with the others by that.
    for _ in 0..200 {
        (0..5).for_each(|instance| _ = target.end(instance, Verdict::Accepted, SECOND));
        (0..20).for_each(|_| _ = target.end(0, Verdict::Shed, SECOND));
    }
    assert_eq!(target.ejector.sweep(&target.instances, target.start + 10 * SECOND, || 0.0), 0);
    assert_eq!(target.in_service(), 5);
    // Failures in a row are that whatever it sheds between them.
    for failure in 1..=5 {
        assert!(!target.end(0, Verdict::Shed, 11 * SECOND));
        assert_eq!(target.end(0, Verdict::Failed, 11 * SECOND), failure == 5);
    }
}

#[test]
fn an_instance_that_was_out_and_sheds_load_is_in_service() {
    let target = Target::new(3);
    target.fail(0, 5, Duration::ZERO);
    let probe = target.probe(30 * SECOND).unwrap();
    assert!(target.end_probe(probe, Verdict::Shed, 30 * SECOND));
    assert!(target.instances[0].in_service());
}

#[test]
fn as_many_may_be_out_as_leave_the_target_above_the_panic_threshold() {
    let settings = EjectionSettings::default();
    let most = |settings: &EjectionSettings| [0, 1, 2, 3, 5, 10].map(|n| settings.ejected_max(n));
    assert_eq!(most(&settings), [0, 0, 1, 1, 2, 5]);
    let tenth = EjectionSettings { part_max: 0.1, ..settings };
    assert_eq!(most(&tenth), [0, 0, 1, 1, 1, 1]);
    let all = EjectionSettings { part_max: 1.0, panic_threshold: 0.0, ..settings };
    assert_eq!(most(&all), [0, 1, 2, 3, 5, 10]);
    for (instances, stay) in [(1, 1), (2, 1), (5, 3), (10, 5)] {
        let target = Target::new(instances);
        (0..instances).for_each(|instance| target.fail(instance, 50, SECOND));
        assert_eq!(target.in_service(), stay, "of {instances}");
    }
}

#[test]
fn one_that_had_to_stay_goes_when_there_is_room() {
    let target = Target::new(2);
    target.fail(0, 5, Duration::ZERO);
    target.fail(1, 7, Duration::ZERO);
    assert_eq!(target.in_service(), 1);
    let probe = target.probe(30 * SECOND).unwrap();
    assert!(target.end_probe(probe, Verdict::Accepted, 30 * SECOND));
    target.fail(1, 3, 31 * SECOND);
    assert!(target.instances[0].in_service() && !target.instances[1].in_service());
}

#[test]
fn one_call_tries_an_instance_after_its_time_and_an_answer_brings_it_back() {
    let target = Target::new(3);
    target.fail(0, 5, Duration::ZERO);
    assert!(target.probe(29 * SECOND).is_none());
    let probe = target.probe(30 * SECOND).unwrap();
    assert!(target.probe(30 * SECOND).is_none());
    assert!(target.end_probe(probe, Verdict::Accepted, 31 * SECOND));
    assert!(target.instances[0].in_service());
    assert!(target.probe(60 * SECOND).is_none());
}

#[test]
fn each_failed_probe_makes_the_time_longer_up_to_the_longest() {
    let target = Target::new(3);
    target.fail(0, 5, Duration::ZERO);
    let mut at = Duration::ZERO;
    for out in [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300].map(Duration::from_secs) {
        assert!(target.probe(at + out - SECOND).is_none(), "{out:?}");
        at += out;
        let probe = target.probe(at).unwrap();
        assert!(!target.end_probe(probe, Verdict::Failed, at));
    }
}

#[test]
fn a_probe_that_outlasts_its_lease_counts_whoever_has_the_lease() {
    for verdict in [Verdict::Accepted, Verdict::Shed, Verdict::Failed] {
        let target = Target::new(3);
        target.fail(0, 5, Duration::ZERO);
        let slow = target.probe(30 * SECOND).unwrap();
        assert!(target.probe(39 * SECOND).is_none());
        let second = target.probe(40 * SECOND).unwrap();
        let works = verdict != Verdict::Failed;
        assert_eq!(target.end_probe(slow, verdict, 42 * SECOND), works, "{verdict:?}");
        assert_eq!(target.instances[0].in_service(), works);
        // The first to end has decided.
        assert!(!target.end_probe(second, Verdict::Failed, 52 * SECOND));
        assert_eq!(target.instances[0].in_service(), works);
        if !works {
            let times = target.instances[0].times_out.load(Relaxed);
            assert_eq!(times, 2, "both hung for one and the same reason");
            assert!(target.probe(101 * SECOND).is_none(), "it is out for twice as long");
            assert!(target.probe(102 * SECOND).is_some());
        }
    }
}

#[test]
fn a_late_probe_that_says_nothing_leaves_the_lease_to_whoever_has_it() {
    let target = Target::new(3);
    target.fail(0, 5, Duration::ZERO);
    let lost = target.probe(30 * SECOND).unwrap();
    let second = target.probe(40 * SECOND).unwrap();
    assert!(!target.end_probe(lost, Verdict::Neutral, 41 * SECOND));
    assert!(target.probe(41 * SECOND).is_none());
    assert!(target.end_probe(second, Verdict::Accepted, 42 * SECOND));
}

#[test]
fn a_call_that_gives_others_a_head_start_has_its_whole_lease() {
    let target = Target::new(3);
    target.fail(0, 5, Duration::ZERO);
    let health = &target.instances[0];
    let late = |at: u32| target.ejector.try_probe(health, target.start + at * SECOND, SECOND);
    assert!(late(30).is_none());
    let probe = late(31).unwrap();
    assert!(target.probe(40 * SECOND).is_none());
    assert!(late(41).is_none(), "nor once the lease of another is over");
    drop(probe);
    assert!(target.probe(41 * SECOND).is_some());
}

#[test]
fn a_probe_that_says_nothing_lets_the_next_call_try() {
    let target = Target::new(3);
    target.fail(0, 5, Duration::ZERO);
    let cancelled = target.probe(30 * SECOND).unwrap();
    assert!(!target.end_probe(cancelled, Verdict::Neutral, 31 * SECOND));
    assert!(target.probe(31 * SECOND).is_some());
}

#[test]
fn answers_to_calls_from_before_are_ignored_while_an_instance_is_out() {
    let target = Target::new(3);
    target.fail(0, 5, Duration::ZERO);
    for verdict in [Verdict::Accepted, Verdict::Failed] {
        (0..200).for_each(|_| assert!(!target.end(0, verdict, SECOND)));
    }
    assert!(!target.instances[0].in_service());
    assert_eq!(target.instances[0].take_counts().accepted, 0, "a sweep compares with none of it");
    let probe = target.probe(30 * SECOND).unwrap();
    assert!(target.end_probe(probe, Verdict::Accepted, 30 * SECOND));
    assert_eq!(target.instances[0].take_counts(), Counts::default());
}

#[test]
fn every_healthy_sweep_forgives_one_time() {
    let target = Target::new(3);
    let sweep = || target.ejector.sweep(&target.instances, target.start, || 0.0);
    target.fail(0, 5, Duration::ZERO);
    let probe = target.probe(30 * SECOND).unwrap();
    target.end_probe(probe, Verdict::Failed, 30 * SECOND);
    sweep();
    let probe = target.probe(90 * SECOND).unwrap();
    assert!(target.end_probe(probe, Verdict::Accepted, 90 * SECOND));
    let times = || target.instances[0].times_out.load(Relaxed);
    assert_eq!(times(), 2, "a sweep while it is out forgives nothing");
    sweep();
    assert_eq!(times(), 1);
    sweep();
    sweep();
    assert_eq!(times(), 0);
}

#[test]
fn a_sweep_puts_out_whose_success_rate_is_far_below_the_others() {
    let target = Target::new(6);
    for call in 0..600_u32 {
        let instance = call as usize % 6;
        // Every second call of the third instance fails: never five in a row.
        let fails = instance == 2 && call / 6 % 2 == 0;
        target.end(instance, if fails { Verdict::Failed } else { Verdict::Accepted }, SECOND);
    }
    let sweep = || target.ejector.sweep(&target.instances, target.start + 10 * SECOND, || 0.5);
    assert_eq!(sweep(), 1);
    assert!(!target.instances[2].in_service() && target.in_service() == 5);
    assert_eq!(sweep(), 0, "what was counted before a sweep is not counted again");
    // Out for thirty seconds less half of the jitter.
    let at = |seconds| target.start + Duration::from_secs(seconds);
    let probe =
        |seconds| target.ejector.try_probe(&target.instances[2], at(seconds), Duration::ZERO);
    assert!(probe(36).is_none());
    assert!(probe(37).is_some());
}

#[test]
fn a_sweep_puts_out_no_more_than_may_be() {
    let target = Target::new(20);
    let settings = EjectionSettings { part_max: 0.1, ..EjectionSettings::default() };
    let target = Target { ejector: Ejector::new(settings), ..target };
    target.fail(0, 5, Duration::ZERO);
    for (instance, health) in target.instances.iter().enumerate() {
        health.accepted.store(if instance < 4 { 0 } else { 1_000 }, Relaxed);
        health.failed.store(if instance < 4 { 1_000 - 10 * instance as u32 } else { 0 }, Relaxed);
    }
    assert_eq!(target.ejector.sweep(&target.instances, target.start, || 0.0), 1);
    assert_eq!(target.in_service(), 18);
}

#[test]
fn threads_that_see_all_fail_put_out_no_more_than_may_be() {
    // Of two instances one may go. Threads change between counting who is out and putting one out.
    for _ in 0..500 {
        let target = Target::new(2);
        std::thread::scope(|scope| {
            for health in &target.instances {
                let all = target.instances.iter().inspect(|_| std::thread::yield_now());
                let target = &target;
                scope.spawn(move || target.ejector.try_eject(health, all, target.start, 0.0));
            }
        });
        assert_eq!(target.in_service(), 1);
    }
}

#[test]
fn of_many_threads_one_gets_the_probe() {
    let target = Target::new(3);
    target.fail(0, 5, Duration::ZERO);
    let probes: usize = std::thread::scope(|scope| {
        let work = || (0..1_000).filter(|_| target.probe(30 * SECOND).is_some()).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(probes, 1);
}

#[test]
fn an_instance_that_fails_everything_gets_next_to_nothing() {
    let target = Target::new(5);
    let mut random = fastrand::Rng::with_seed(5);
    let (mut calls, mut bad) = (0_u32, 0_u32);
    // A thousand calls a second for two minutes, to any instance that is in service.
    for millis in 0..120_000 {
        let at = Duration::from_millis(millis);
        let instance = random.usize(0..5);
        let verdict = if instance == 0 { Verdict::Failed } else { Verdict::Accepted };
        if target.instances[instance].in_service() {
            target.end(instance, verdict, at);
        } else if let Some(probe) = target.probe(at) {
            target.end_probe(probe, verdict, at);
        } else {
            continue;
        }
        calls += 1;
        bad += u32::from(instance == 0);
    }
    println!("{bad} of {calls} calls went to the instance that fails");
    assert!((6..=8).contains(&bad), "{bad}");
}

#[test]
fn an_instance_that_was_connected_to_anew_is_in_service() {
    let now = Instant::now();
    let ejector = Ejector::new(EjectionSettings::default());
    let all = [Health::new(now), Health::new(now), Health::new(now)];
    for _ in 0..4 {
        assert!(!ejector.record(&all[0], Verdict::Failed));
    }
    assert!(ejector.record(&all[0], Verdict::Failed));
    assert!(ejector.try_eject(&all[0], &all, now, 0.0));
    all[0].renew();
    assert!(all[0].in_service());
    assert!(!ejector.record(&all[0], Verdict::Failed), "failures of before do not count");
}
