//! Tables over the decisions: every state meets every input.

use super::*;
use crate::plan::StepPlan;

const SECOND: Duration = Duration::from_secs(1);
const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

fn step(name: &'static str, index: usize, role: Role) -> StepPlan {
    StepPlan {
        name,
        role,
        place: Place::Remote,
        undo: role == Role::Compensable,
        query: false,
        at_most_once: false,
        timeout: 10 * SECOND,
        retry: RetryPolicy::exponential(SECOND, 8 * SECOND).attempts(3),
        after: (1 << index) - 1,
    }
}

/// reserve → charge → confirm (local, pivot) → ship: the shape of most sagas.
fn order() -> Plan {
    let local = StepPlan { place: Place::Local, ..step("confirm", 2, Role::Pivot) };
    Plan {
        steps: vec![
            step("reserve", 0, Role::Compensable),
            step("charge", 1, Role::Compensable),
            local,
            step("ship", 3, Role::ForwardOnly),
        ],
        deadline: 60 * SECOND,
    }
}

fn change(mut plan: Plan, step: usize, change: impl FnOnce(&mut StepPlan)) -> Plan {
    change(&mut plan.steps[step]);
    plan
}

/// A saga under test.
struct Case {
    plan: Plan,
    instance: Instance,
    now: Timestamp,
    effects: Vec<Effect>,
    accepted: bool,
}

impl Case {
    fn new(plan: Plan) -> Self {
        let instance = Instance::new(plan.steps.len(), NOW + plan.deadline);
        Self { plan, instance, now: NOW, effects: Vec::new(), accepted: true }.input(&Input::Start)
    }

    fn input(mut self, input: &Input) -> Self {
        let before = self.instance.clone();
        let decision = decide(&self.plan, self.instance, input, self.now, 1.0);
        self.instance = decision.instance;
        self.effects = decision.effects;
        self.accepted = decision.accepted;
        if !self.accepted {
            assert_eq!(self.instance, before, "what is not accepted changes nothing: {input:?}");
            assert!(self.effects.is_empty());
        }
        self
    }

    fn reply(self, step: usize, op: Op, outcome: Outcome) -> Self {
        let attempt = self.instance.steps[step].tries;
        self.input(&Input::Reply { step, op, attempt, outcome })
    }

    fn done(self, step: usize) -> Self {
        self.reply(step, Op::Action, Outcome::Done)
    }

    fn refused(self, step: usize) -> Self {
        self.reply(step, Op::Action, no())
    }

    fn undone(self, step: usize) -> Self {
        self.reply(step, Op::Undo, Outcome::Done)
    }

    fn ran(self, step: usize, outcome: Outcome) -> Self {
        self.input(&Input::Local { step, side: Side::Action, outcome })
    }

    fn closed(self) -> Self {
        self.input(&Input::Closed(Outcome::Done))
    }

    fn after(mut self, time: Duration) -> Self {
        self.now = self.now + time;
        self.input(&Input::Timer)
    }

    /// Lets time pass until the next thing is due, and lets it happen.
    fn next(mut self) -> Self {
        self.now = wake_at(&self.plan, &self.instance).expect("something is due");
        self.input(&Input::Timer)
    }

    fn phases(&self) -> Vec<Phase> {
        self.instance.steps.iter().map(|step| step.phase).collect()
    }
}

fn no() -> Outcome {
    Outcome::Refused { reason: "NO".into(), message: "no".into() }
}

fn failed() -> Outcome {
    Outcome::Failed("trouble".into())
}

fn send(step: usize, op: Op, attempt: u32) -> Effect {
    Effect::Send { step, op, attempt }
}

fn run(step: usize) -> Effect {
    Effect::Run { step, side: Side::Action }
}

/// Everything that may happen to a saga of `order()`, with its current tries.
fn every_input(instance: &Instance) -> Vec<Input> {
    let mut inputs = vec![
        Input::Start,
        Input::Timer,
        Input::Cancel,
        Input::Resume,
        Input::Closed(Outcome::Done),
        Input::Closed(failed()),
    ];
    for (step, progress) in instance.steps.iter().enumerate() {
        let attempt = progress.tries;
        for outcome in [Outcome::Done, no()] {
            for op in [Op::Action, Op::Forward, Op::Undo, Op::Query] {
                inputs.push(Input::Reply { step, op, attempt, outcome: outcome.clone() });
            }
        }
        for side in [Side::Action, Side::Undo] {
            for outcome in [Outcome::Done, no(), failed()] {
                inputs.push(Input::Local { step, side, outcome });
            }
        }
        for happened in [true, false] {
            inputs.push(Input::Settle { step, happened });
        }
    }
    inputs
}

#[test]
fn a_saga_goes_forward_step_by_step_and_completes() {
    let case = Case::new(order());
    assert_eq!(case.effects, [send(0, Op::Action, 1)]);
    let case = case.done(0);
    assert_eq!(case.effects, [send(1, Op::Action, 1)]);
    let case = case.done(1);
    assert_eq!(case.effects, [run(2)]);
    let case = case.ran(2, Outcome::Done);
    assert_eq!(case.effects, [send(3, Op::Forward, 1)]);
    let case = case.reply(3, Op::Forward, Outcome::Done);
    assert_eq!(case.effects, [Effect::Close]);
    let case = case.closed();
    assert_eq!(case.instance.state, State::Completed);
    assert_eq!(wake_at(&case.plan, &case.instance), None);
}

#[test]
fn a_refusal_undoes_what_was_done_in_reverse() {
    let case = Case::new(order()).done(0).done(1).ran(2, no());
    assert_eq!(case.instance.state, State::Compensating);
    assert_eq!(case.effects, [send(1, Op::Undo, 1)]);
    assert_eq!(case.instance.failure.as_ref().unwrap().step.as_deref(), Some("confirm"));
    let case = case.undone(1);
    assert_eq!(case.effects, [send(0, Op::Undo, 1)]);
    let case = case.undone(0);
    assert_eq!(case.effects, [Effect::Close]);
    assert_eq!(case.closed().instance.state, State::Compensated);
}

#[test]
fn a_refused_step_itself_is_not_undone() {
    let case = Case::new(order()).refused(0);
    assert_eq!(case.effects, [Effect::Close]);
    assert_eq!(case.phases()[0], Phase::Refused);
}

#[test]
fn a_step_of_unknown_outcome_is_undone() {
    let case = Case::new(order()).done(0).next().next();
    assert_eq!(case.effects, [send(1, Op::Action, 3)]);
    let case = case.next();
    assert_eq!(case.instance.failure.as_ref().unwrap().reason, "TIMEOUT");
    assert_eq!(case.effects, [send(1, Op::Undo, 1)], "nobody knows, so it counts as done");
}

#[test]
fn tries_are_spaced_by_the_timeout_and_a_growing_wait() {
    let case = Case::new(order());
    assert_eq!(case.instance.steps[0].due, Some(NOW + 10 * SECOND));
    let case = case.next();
    assert_eq!(case.effects, [send(0, Op::Action, 2)]);
    assert_eq!(case.instance.steps[0].due, Some(NOW + 21 * SECOND));
    let case = case.next();
    assert_eq!(case.instance.steps[0].due, Some(NOW + 33 * SECOND));
}

#[test]
fn a_timer_that_comes_early_means_nothing() {
    let case = Case::new(order()).after(9 * SECOND);
    assert!(!case.accepted);
}

#[test]
fn the_deadline_turns_back_before_the_pivot_only() {
    let case = Case::new(order()).done(0).after(60 * SECOND);
    assert_eq!(case.instance.failure.as_ref().unwrap().reason, "DEADLINE");
    assert_eq!(case.effects, [send(1, Op::Undo, 1)], "the running step is undone as well");

    let case = Case::new(order()).done(0).done(1).ran(2, Outcome::Done).after(60 * SECOND);
    assert_eq!(case.instance.state, State::Running);
    assert_eq!(case.effects, [send(3, Op::Forward, 2)]);
}

#[test]
fn cancelling_turns_back_before_the_pivot_only() {
    for reached in 0..=2 {
        let mut case = Case::new(order());
        for step in 0..reached {
            case = case.done(step);
        }
        let case = case.input(&Input::Cancel);
        assert!(case.accepted);
        assert_eq!(case.instance.state, State::Compensating);
        let again = case.input(&Input::Cancel);
        assert!(again.accepted && again.effects.is_empty());
    }
    let case = Case::new(order()).done(0).done(1).ran(2, Outcome::Done).input(&Input::Cancel);
    assert!(!case.accepted);
    assert!(!case.reply(3, Op::Forward, Outcome::Done).input(&Input::Cancel).accepted);
}

#[test]
fn a_local_pivot_that_keeps_failing_may_still_be_cancelled() {
    let case = Case::new(order()).done(0).done(1).ran(2, failed());
    assert_eq!(case.instance.steps[2].due, Some(NOW + SECOND));
    assert!(!is_committed(&case.plan, &case.instance));
    let case = case.next();
    assert_eq!(case.effects, [run(2)]);
    let case = case.ran(2, failed()).next().ran(2, failed());
    assert_eq!(case.instance.state, State::Compensating, "three tries were allowed");
    assert_eq!(case.instance.failure.as_ref().unwrap().reason, "FAILED");
}

#[test]
fn a_remote_pivot_goes_only_forward_once_it_may_have_happened() {
    let plan = change(order(), 2, |pivot| pivot.place = Place::Remote);
    let case = Case::new(plan).done(0).done(1);
    assert_eq!(case.effects, [send(2, Op::Action, 1)]);
    let case = case.input(&Input::Cancel);
    assert!(!case.accepted);
    let mut case = case;
    for attempt in 2..=7 {
        case = case.next();
        assert_eq!(case.effects, [send(2, Op::Action, attempt)]);
        assert_eq!(case.instance.parked.is_some(), attempt >= 4, "after three tries");
    }
    let back = Case { instance: case.instance.clone(), plan: order(), ..case };
    let plan = change(order(), 2, |pivot| pivot.place = Place::Remote);
    let case = Case { plan, ..back }.refused(2);
    assert_eq!(case.instance.state, State::Compensating, "a refusal is certain");
}

#[test]
fn a_forward_step_is_tried_for_ever_and_an_operator_hears_of_it() {
    let mut case = Case::new(order()).done(0).done(1).ran(2, Outcome::Done);
    for attempt in 2..=40 {
        case = case.next();
        assert_eq!(case.effects, [send(3, Op::Forward, attempt)]);
    }
    assert!(case.instance.parked.as_ref().unwrap().contains("ship"));
    let due = case.instance.steps[3].due.unwrap();
    assert_eq!(due.since(case.now), 18 * SECOND, "the wait is capped");
    let case = case.reply(3, Op::Forward, Outcome::Done);
    assert_eq!(case.instance.parked, None);
}

#[test]
fn a_refused_forward_step_is_asked_for_again() {
    let case = Case::new(order()).done(0).done(1).ran(2, Outcome::Done);
    let case = case.reply(3, Op::Forward, no());
    assert_eq!(case.instance.state, State::Running);
    assert!(case.instance.parked.as_ref().unwrap().contains("NO: no"));
    assert_eq!(case.next().effects, [send(3, Op::Forward, 2)]);
}

#[test]
fn undoing_never_gives_up_and_parks_after_its_tries() {
    let mut case = Case::new(order()).done(0).refused(1);
    for attempt in 2..=20 {
        case = case.next();
        assert_eq!(case.effects, [send(0, Op::Undo, attempt)]);
        assert_eq!(case.instance.parked.is_some(), attempt >= 4);
    }
    let case = case.undone(0);
    assert_eq!(case.instance.parked, None);
    assert_eq!(case.effects, [Effect::Close]);
}

#[test]
fn a_refused_undo_is_tried_again() {
    let case = Case::new(order()).done(0).refused(1).reply(0, Op::Undo, no());
    assert!(case.accepted && case.effects.is_empty());
    assert_eq!(case.instance.steps[0].due, Some(NOW + SECOND));
    assert_eq!(case.next().effects, [send(0, Op::Undo, 2)]);
}

#[test]
fn resuming_tries_at_once_what_was_parked() {
    let mut case = Case::new(order()).done(0).refused(1);
    assert!(!case.instance.state.is_ended());
    for _ in 0..4 {
        case = case.next();
    }
    assert!(case.instance.parked.is_some());
    let case = case.input(&Input::Resume);
    assert_eq!(case.effects, [send(0, Op::Undo, 6)]);
    assert_eq!(case.instance.parked, None);
    assert!(!case.input(&Input::Resume).accepted, "it is no longer parked");
}

#[test]
fn late_replies_are_only_recorded() {
    let case = Case::new(order()).done(0).input(&Input::Cancel);
    let case = case.done(1);
    assert!(!case.accepted, "its undo is on the way");
    let case = case.done(0).undone(1);
    assert!(case.accepted);
    assert!(!case.undone(1).accepted, "twice");
}

#[test]
fn a_reply_that_comes_twice_means_nothing_the_second_time() {
    let case = Case::new(order()).done(0);
    assert!(!case.done(0).accepted);
}

#[test]
fn an_at_most_once_step_is_never_asked_for_twice() {
    let once = |undo, query| {
        change(order(), 1, |charge| {
            charge.at_most_once = true;
            charge.undo = undo;
            charge.query = query;
        })
    };
    // Undone, where there is an undo and no query.
    let case = Case::new(once(true, false)).done(0).next();
    assert_eq!(case.effects, [send(1, Op::Undo, 1)]);

    // Queried, where there is a query.
    let case = Case::new(once(true, true)).done(0).next();
    assert_eq!(case.effects, [send(1, Op::Query, 1)]);
    assert_eq!(case.phases()[1], Phase::Unknown);
    let done = case.reply(1, Op::Query, Outcome::Done);
    assert_eq!(done.effects, [run(2)]);

    let case = Case::new(once(true, true)).done(0).next().reply(1, Op::Query, no());
    assert_eq!(case.effects, [send(1, Op::Undo, 1)], "its command may still be on the way");

    let case = Case::new(once(true, true)).done(0).next().next().next().next();
    assert_eq!(case.effects, [send(1, Op::Undo, 1)], "three queries were allowed");

    // Parked, where there is neither.
    let case = Case::new(once(false, false)).done(0).next();
    assert!(case.effects.is_empty());
    assert!(case.instance.parked.as_ref().unwrap().contains("settle it"));
    assert_eq!(wake_at(&case.plan, &case.instance), Some(NOW + 60 * SECOND), "the deadline");
    let case = case.input(&Input::Resume);
    assert!(!case.accepted, "only somebody who knows can help");
}

#[test]
fn an_operator_settles_what_nobody_knew() {
    let plan = || {
        change(order(), 1, |charge| {
            charge.at_most_once = true;
            charge.undo = false;
        })
    };
    let case = Case::new(plan()).done(0).next().input(&Input::Settle { step: 1, happened: true });
    assert_eq!(case.effects, [run(2)]);
    assert_eq!(case.instance.parked, None);
    let case = Case::new(plan()).done(0).next().input(&Input::Settle { step: 1, happened: false });
    assert_eq!(case.effects, [send(0, Op::Undo, 1)], "there is nothing to undo of the step itself");
    let case = Case::new(plan()).done(0).input(&Input::Settle { step: 1, happened: true });
    assert!(!case.accepted, "its answer may still come");
    let late = Case::new(plan()).done(0).next().done(1);
    assert_eq!(late.effects, [run(2)], "a late answer settles it as well");
    assert_eq!(late.instance.parked, None);
}

#[test]
fn an_at_most_once_forward_step_that_did_not_happen_is_asked_for_again() {
    let plan = change(order(), 3, |ship| {
        ship.at_most_once = true;
        ship.query = true;
    });
    let case = Case::new(plan).done(0).done(1).ran(2, Outcome::Done).next();
    assert_eq!(case.effects, [send(3, Op::Query, 1)]);
    let case = case.reply(3, Op::Query, no());
    assert_eq!(case.effects, [send(3, Op::Forward, 2)]);
    let case = case.reply(3, Op::Query, no());
    assert!(!case.accepted, "an answer to an earlier query says nothing of what was asked since");
}

#[test]
fn an_at_most_once_pivot_that_did_not_happen_is_asked_for_again() {
    let plan = change(order(), 2, |pivot| {
        pivot.place = Place::Remote;
        pivot.at_most_once = true;
        pivot.query = true;
    });
    let case = Case::new(plan).done(0).done(1).next();
    assert_eq!(case.effects, [send(2, Op::Query, 1)]);
    let case = case.reply(2, Op::Query, no());
    assert_eq!(
        case.effects,
        [send(2, Op::Action, 2)],
        "it may still arrive, so there is no way back"
    );
    assert!(!case.input(&Input::Cancel).accepted);
}

#[test]
fn steps_side_by_side_begin_and_are_undone_together() {
    // a → (b, c) → d, and then d is refused.
    let mut plan = order();
    plan.steps = vec![
        step("a", 0, Role::Compensable),
        StepPlan { after: 0b1, ..step("b", 1, Role::Compensable) },
        StepPlan { after: 0b1, ..step("c", 2, Role::Compensable) },
        StepPlan { after: 0b111, ..step("d", 3, Role::Compensable) },
    ];
    let case = Case::new(plan).done(0);
    assert_eq!(case.effects, [send(1, Op::Action, 1), send(2, Op::Action, 1)]);
    let case = case.done(2);
    assert!(case.effects.is_empty());
    let case = case.done(1);
    assert_eq!(case.effects, [send(3, Op::Action, 1)]);
    let case = case.refused(3);
    assert_eq!(case.effects, [send(2, Op::Undo, 1), send(1, Op::Undo, 1)]);
    let case = case.undone(1);
    assert!(case.effects.is_empty(), "c still depends on a");
    assert_eq!(case.undone(2).effects, [send(0, Op::Undo, 1)]);
}

#[test]
fn a_local_undo_is_run_until_it_works() {
    let plan = change(order(), 0, |reserve| reserve.place = Place::Local);
    let case = Case::new(plan).ran(0, Outcome::Done).refused(1);
    let undo = Effect::Run { step: 0, side: Side::Undo };
    assert_eq!(case.effects, [undo]);
    let unran = |outcome| Input::Local { step: 0, side: Side::Undo, outcome };
    let case = case.input(&unran(failed()));
    assert_eq!(case.instance.steps[0].due, Some(NOW + SECOND));
    let case = case.next();
    assert_eq!(case.effects, [undo]);
    assert_eq!(case.input(&unran(Outcome::Done)).effects, [Effect::Close]);
}

#[test]
fn a_closing_handler_that_fails_is_run_again_and_parks() {
    let mut case = Case::new(order()).refused(0);
    for tries in 1..=9 {
        case = case.input(&Input::Closed(failed()));
        assert_eq!(case.instance.state, State::Compensating);
        assert_eq!(case.instance.parked.is_some(), tries >= 8);
        case = case.next();
        assert_eq!(case.effects, [Effect::Close]);
    }
    let case = case.closed();
    assert_eq!(case.instance.state, State::Compensated);
    assert_eq!(case.instance.parked, None);
}

#[test]
fn without_a_pivot_everything_can_be_undone_until_all_is_done() {
    let mut plan = order();
    plan.steps.truncate(2);
    let case = Case::new(plan.clone()).done(0).refused(1);
    assert_eq!(case.effects, [send(0, Op::Undo, 1)]);
    let case = Case::new(plan).done(0).done(1);
    assert_eq!(case.effects, [Effect::Close]);
    assert!(!case.input(&Input::Cancel).accepted, "only the closing handler is left");
}

#[test]
fn nothing_moves_a_saga_that_has_ended() {
    for case in [
        Case::new(order()).refused(0).closed(),
        Case::new(order())
            .done(0)
            .done(1)
            .ran(2, Outcome::Done)
            .reply(3, Op::Forward, Outcome::Done)
            .closed(),
    ] {
        for input in every_input(&case.instance) {
            let decision =
                decide(&case.plan, case.instance.clone(), &input, case.now + 3_600 * SECOND, 0.0);
            assert!(!decision.accepted && decision.effects.is_empty(), "{input:?}");
        }
    }
}

/// What must hold whatever happened.
fn check(plan: &Plan, instance: &Instance, path: &[Input]) {
    let waits = wake_at(plan, instance).is_some() || instance.parked.is_some();
    assert!(waits || instance.state.is_ended(), "it would hang: {instance:?} after {path:?}");
    let phases: Vec<Phase> = instance.steps.iter().map(|step| step.phase).collect();
    if instance.state == State::Completed {
        assert!(phases.iter().all(|phase| *phase == Phase::Done), "{path:?}");
    }
    let pivoted = plan.pivot().is_some_and(|pivot| phases[pivot] == Phase::Done);
    if pivoted {
        let forward = matches!(instance.state, State::Running | State::Completed);
        assert!(forward, "it turned back after its pivot: {path:?}");
    }
    if instance.state == State::Compensated {
        for (step, phase) in plan.steps.iter().zip(&phases) {
            let clean = matches!(phase, Phase::Waiting | Phase::Refused | Phase::Undone);
            assert!(clean || !step.undo, "{} is left as {phase:?}: {path:?}", step.name);
        }
    }
}

#[test]
fn no_order_of_inputs_breaks_what_a_saga_promises() {
    let plans = [
        order(),
        change(order(), 2, |pivot| pivot.place = Place::Remote),
        change(order(), 1, |charge| charge.at_most_once = true),
        change(order(), 1, |charge| {
            charge.at_most_once = true;
            charge.query = true;
        }),
        change(order(), 0, |reserve| reserve.place = Place::Local),
    ];
    for plan in &plans {
        for seed in 0..500 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut instance = Instance::new(plan.steps.len(), NOW + plan.deadline);
            let mut now = NOW;
            let mut path = vec![Input::Start];
            instance = decide(plan, instance, &Input::Start, now, 0.5).instance;
            for _ in 0..30 {
                now = now + random.u32(0..8_000) * Duration::from_millis(1);
                let inputs = every_input(&instance);
                // A second start, and a settlement by chance, are not what happens.
                let input = inputs[random.usize(1..inputs.len())].clone();
                path.push(input.clone());
                let before = instance.clone();
                let decision = decide(plan, instance, &input, now, random.f64());
                instance = decision.instance;
                assert!(decision.accepted || instance == before, "{path:?}");
                check(plan, &instance, &path);
            }
        }
    }
}
