//! Back to the beginning: undoing everything that was ever asked for.

use crate::instance::{Failure, Phase, Progress};
use crate::plan::Place;
use crate::port::{Side, State};

use super::{Effect, Op, Outcome, Turn, is_alarming};

impl Turn<'_> {
    /// The saga turns back.
    pub(super) fn turn_back(&mut self, failure: Failure) {
        self.instance.state = State::Compensating;
        self.instance.failure = Some(failure);
        self.instance.parked = None;
        for (plan, progress) in self.plan.steps.iter().zip(&mut self.instance.steps) {
            progress.due = None;
            if plan.place == Place::Local && progress.phase == Phase::Running {
                // Its work was rolled back each time.
                progress.phase = Phase::Refused;
            }
        }
        // Effects of this turn that go forward were decided before it turned back.
        self.effects.clear();
        self.go_backward();
    }

    /// Undoes every step that has nothing left to undo behind it; closes when none is left.
    pub(super) fn go_backward(&mut self) {
        let steps = self.plan.steps.len();
        for step in (0..steps).rev() {
            let clear = (step + 1..steps)
                .all(|later| !self.plan.depends(later, step) || self.is_settled(later));
            if clear && self.is_to_be_undone(step) {
                self.begin_undo(step);
            }
        }
        if (0..steps).all(|step| self.is_settled(step)) {
            self.close();
        }
    }

    fn is_to_be_undone(&self, step: usize) -> bool {
        let phase = self.instance.steps[step].phase;
        self.plan.steps[step].undo && matches!(phase, Phase::Running | Phase::Unknown | Phase::Done)
    }

    fn is_settled(&self, step: usize) -> bool {
        self.instance.steps[step].phase != Phase::Undoing && !self.is_to_be_undone(step)
    }

    fn begin_undo(&mut self, step: usize) {
        let plan = &self.plan.steps[step];
        let (tries, due) = match plan.place {
            Place::Remote => (1, self.now + plan.timeout),
            Place::Local => (0, self.now),
        };
        let begun = self.instance.steps[step].begun;
        self.instance.steps[step] =
            Progress { phase: Phase::Undoing, tries, due: Some(due), begun };
        match plan.place {
            Place::Remote => self.ask(step, Op::Undo),
            Place::Local => self.effects.push(Effect::Run { step, side: Side::Undo }),
        }
    }

    /// A participant answered an undo.
    pub(super) fn undo_answered(&mut self, step: usize, attempt: u32, outcome: &Outcome) -> bool {
        let progress = &self.instance.steps[step];
        if progress.phase != Phase::Undoing {
            return false;
        }
        match outcome {
            Outcome::Done => self.undone(step),
            Outcome::Refused { .. } | Outcome::Failed(_) if progress.tries != attempt => {
                return false;
            }
            Outcome::Refused { .. } | Outcome::Failed(_) => {
                let wait = self.backoff(&self.plan.steps[step].retry, attempt);
                self.instance.steps[step].due = Some(self.now + wait);
            }
        }
        true
    }

    /// The local undo of a step was run.
    pub(super) fn unran(&mut self, step: usize, outcome: &Outcome) -> bool {
        if self.instance.steps[step].phase != Phase::Undoing {
            return false;
        }
        match outcome {
            Outcome::Done => self.undone(step),
            Outcome::Refused { .. } | Outcome::Failed(_) => {
                let tries = self.instance.steps[step].tries + 1;
                self.run_later(step, tries, outcome);
            }
        }
        true
    }

    fn undone(&mut self, step: usize) {
        self.rest(step, Phase::Undone);
        self.unpark();
        self.go_backward();
    }

    /// The answer to an undo is overdue, or a local undo is to be run.
    pub(super) fn undo_due(&mut self, step: usize) {
        let plan = &self.plan.steps[step];
        if plan.place == Place::Local {
            self.effects.push(Effect::Run { step, side: Side::Undo });
            return;
        }
        let tries = self.instance.steps[step].tries;
        if is_alarming(&plan.retry, tries) {
            self.park(format!("undoing the step {} has failed {tries} times", plan.name));
        }
        self.ask_again(step, Op::Undo);
    }
}
