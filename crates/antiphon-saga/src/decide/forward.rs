//! Towards the end: asking for steps, hearing of them, running out of patience.

use crate::instance::{Failure, Phase, Progress};
use crate::plan::{Place, Role};
use crate::port::{Side, State};

use super::{Effect, Op, Outcome, Turn, describe, is_alarming};

impl Turn<'_> {
    /// Begins every step whose predecessors are done; closes when none is left.
    pub(super) fn go_forward(&mut self) {
        let done = self.bits(|progress| progress.phase == Phase::Done);
        for step in 0..self.plan.steps.len() {
            let ready = self.plan.steps[step].after & !done == 0;
            if ready && self.instance.steps[step].phase == Phase::Waiting {
                self.begin(step);
            }
        }
        if done.count_ones() as usize == self.plan.steps.len() {
            self.close();
        }
    }

    fn bits(&self, holds: impl Fn(&Progress) -> bool) -> u64 {
        let steps = self.instance.steps.iter().enumerate();
        steps.filter(|(_, progress)| holds(progress)).fold(0, |bits, (step, _)| bits | 1 << step)
    }

    fn begin(&mut self, step: usize) {
        let plan = &self.plan.steps[step];
        let (tries, due) = match plan.place {
            Place::Remote => (1, self.now + plan.timeout),
            Place::Local => (0, self.now),
        };
        self.instance.steps[step] =
            Progress { phase: Phase::Running, tries, due: Some(due), begun: Some(self.now) };
        match plan.place {
            Place::Remote => self.ask(step, self.action_of(step)),
            Place::Local => self.effects.push(Effect::Run { step, side: Side::Action }),
        }
    }

    fn action_of(&self, step: usize) -> Op {
        match self.plan.steps[step].role {
            Role::ForwardOnly => Op::Forward,
            Role::Compensable | Role::Pivot => Op::Action,
        }
    }

    /// Sends the current try.
    pub(super) fn ask(&mut self, step: usize, op: Op) {
        let attempt = self.instance.steps[step].tries;
        self.effects.push(Effect::Send { step, op, attempt });
    }

    /// Sends one more try, and gives it longer than the one before.
    pub(super) fn ask_again(&mut self, step: usize, op: Op) {
        let plan = &self.plan.steps[step];
        let tries = self.instance.steps[step].tries;
        let wait = self.backoff(&plan.retry, tries.max(1));
        let progress = &mut self.instance.steps[step];
        progress.tries = tries + 1;
        progress.due = Some(self.now + plan.timeout + wait);
        self.ask(step, op);
    }

    /// A participant answered an action or a query.
    pub(super) fn action_answered(
        &mut self,
        step: usize,
        op: Op,
        attempt: u32,
        outcome: &Outcome,
    ) -> bool {
        let progress = &self.instance.steps[step];
        let awaited = match op {
            // An answer to an earlier query says nothing of what was asked for since.
            Op::Query => progress.phase == Phase::Unknown,
            _ => matches!(progress.phase, Phase::Running | Phase::Unknown),
        };
        if self.instance.state != State::Running || !awaited {
            return false;
        }
        match (outcome, op) {
            (Outcome::Done, _) => self.done(step),
            (Outcome::Refused { reason, message }, Op::Action) if self.is_refusable(step) => {
                self.refused(step, Phase::Refused, reason, message);
            }
            (Outcome::Refused { reason, message }, Op::Query) => {
                self.not_done(step, reason, message);
            }
            _ if progress.tries != attempt => return false,
            _ => {
                let wait = self.backoff(&self.plan.steps[step].retry, attempt);
                self.instance.steps[step].due = Some(self.now + wait);
                self.park(format!(
                    "the step {} cannot be undone any more, and is refused: {}",
                    self.plan.steps[step].name,
                    describe(outcome)
                ));
            }
        }
        true
    }

    pub(super) fn done(&mut self, step: usize) {
        self.rest(step, Phase::Done);
        self.unpark();
        self.go_forward();
    }

    /// The step had not been done when somebody looked. Its command may still be on the way: so a
    /// step that can be undone is undone all the same, which keeps the action from ever running.
    pub(super) fn not_done(&mut self, step: usize, reason: &str, message: &str) {
        let plan = &self.plan.steps[step];
        if plan.role == Role::Compensable {
            let phase = if plan.undo { Phase::Unknown } else { Phase::Refused };
            self.refused(step, phase, reason, message);
        } else {
            self.instance.steps[step].phase = Phase::Running;
            self.unpark();
            self.ask_again(step, self.action_of(step));
        }
    }

    fn is_refusable(&self, step: usize) -> bool {
        self.plan.steps[step].role != Role::ForwardOnly
    }

    /// The saga turns back because of this step, which rests in this phase.
    fn refused(&mut self, step: usize, phase: Phase, reason: &str, message: &str) {
        self.rest(step, phase);
        self.turn_back(Failure {
            step: Some(self.plan.steps[step].name.to_owned()),
            reason: reason.to_owned(),
            message: message.to_owned(),
        });
    }

    /// Nothing more is asked of the step in this phase.
    pub(super) fn rest(&mut self, step: usize, phase: Phase) {
        let progress = &mut self.instance.steps[step];
        progress.phase = phase;
        progress.due = None;
    }

    /// A local step was run.
    pub(super) fn ran(&mut self, step: usize, outcome: &Outcome) -> bool {
        let running = self.instance.steps[step].phase == Phase::Running;
        if self.instance.state != State::Running || !running {
            return false;
        }
        let plan = &self.plan.steps[step];
        let turns_back = self.is_refusable(step);
        match outcome {
            Outcome::Done => self.done(step),
            Outcome::Refused { reason, message } if turns_back => {
                self.refused(step, Phase::Refused, reason, message);
            }
            Outcome::Refused { .. } | Outcome::Failed(_) => {
                let tries = self.instance.steps[step].tries + 1;
                if turns_back && tries >= plan.retry.attempts_max {
                    self.refused(step, Phase::Refused, "FAILED", &describe(outcome));
                } else {
                    self.run_later(step, tries, outcome);
                }
            }
        }
        true
    }

    /// A local step that failed is run again, after a while.
    pub(super) fn run_later(&mut self, step: usize, tries: u32, outcome: &Outcome) {
        let plan = &self.plan.steps[step];
        let wait = self.backoff(&plan.retry, tries);
        self.instance.steps[step].tries = tries;
        self.instance.steps[step].due = Some(self.now + wait);
        if is_alarming(&plan.retry, tries) {
            self.park(format!("the step {} fails: {}", plan.name, describe(outcome)));
        }
    }

    /// The answer to an action or a query is overdue, or a local step is to be run.
    pub(super) fn action_due(&mut self, step: usize) {
        let plan = &self.plan.steps[step];
        let Progress { phase, tries, .. } = self.instance.steps[step];
        if plan.place == Place::Local {
            self.effects.push(Effect::Run { step, side: Side::Action });
            return;
        }
        let querying = phase == Phase::Unknown;
        if plan.at_most_once && !querying {
            self.lose_track(step);
            return;
        }
        if tries >= plan.retry.attempts_max && self.may_turn_back(step) && (plan.undo || !querying)
        {
            self.give_up(step);
            return;
        }
        if is_alarming(&plan.retry, tries) {
            self.park(format!("the step {} was tried {tries} times without an answer", plan.name));
        }
        self.ask_again(step, if querying { Op::Query } else { self.action_of(step) });
    }

    /// An at-most-once step was not answered in time.
    fn lose_track(&mut self, step: usize) {
        let plan = &self.plan.steps[step];
        self.rest(step, Phase::Unknown);
        if plan.query {
            self.instance.steps[step].tries = 1;
            self.instance.steps[step].due = Some(self.now + plan.timeout);
            self.ask(step, Op::Query);
        } else if self.may_turn_back(step) && plan.undo {
            self.give_up(step);
        } else {
            self.park(format!("nobody knows whether the step {} was done: settle it", plan.name));
        }
    }

    fn give_up(&mut self, step: usize) {
        let name = self.plan.steps[step].name;
        self.rest(step, Phase::Unknown);
        self.turn_back(Failure {
            step: Some(name.to_owned()),
            reason: "TIMEOUT".into(),
            message: format!("the step {name} was not answered in time"),
        });
    }
}
