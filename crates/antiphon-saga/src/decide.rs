//! What a saga does next: pure, without waiting, without a clock.
//!
//! One input at a time turns one [`Instance`] into the next and into effects that the coordinator
//! carries out in the same transaction. The rules:
//!
//! * Forward, a step is asked for when all steps before it are done. A refusal, used-up tries, the
//!   deadline or a cancellation turn the saga back, unless the pivot may have happened.
//! * Backward, every step that was ever asked for and not refused is undone, later steps first.
//!   What is not known counts as done: the barrier at the participant makes an undo of nothing
//!   harmless, and the action behind it ineffective.
//! * After the pivot, and when undoing, a step is asked for until it is done. After every
//!   `attempts_max` tries the saga is parked: an operator is told, and the tries go on.
//! * A step that runs at most once is never asked for again while its outcome is unknown: it is
//!   queried, else undone, else parked until an operator or a late answer settles it.
//!
//! The algorithm is that of H. Garcia-Molina and K. Salem, "Sagas" (1987), with the pivot of
//! flexible transactions (Mehrotra et al., 1992).

mod backward;
mod forward;

use std::time::Duration;

use antiphon_core::{Retry, RetryPolicy, Timestamp, retry};

use crate::instance::{Failure, Instance, Phase, Progress};
use crate::plan::{Place, Plan, Role};
use crate::port::{Side, State};

/// What a command asks of a participant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Do it; a refusal is final.
    Action,
    /// Do it, now or later: the saga cannot turn back.
    Forward,
    /// Undo it.
    Undo,
    /// Say whether it was done.
    Query,
}

/// What a participant, a local step or a closing handler answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// No, for a reason of the business.
    Refused {
        /// A stable word.
        reason: String,
        /// What happened, for people.
        message: String,
    },
    /// Technical trouble; nothing was done. Only of work in the coordinator's own transaction.
    Failed(String),
}

/// What happens to a saga.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// It begins.
    Start,
    /// A participant has answered.
    Reply {
        /// Which step.
        step: usize,
        /// What was asked.
        op: Op,
        /// Which try was answered.
        attempt: u32,
        /// The answer.
        outcome: Outcome,
    },
    /// A local step was run.
    Local {
        /// Which step.
        step: usize,
        /// Which way.
        side: Side,
        /// What came of it.
        outcome: Outcome,
    },
    /// The closing handler was run.
    Closed(Outcome),
    /// Time has passed.
    Timer,
    /// Somebody wants it to turn back.
    Cancel,
    /// An operator wants what is stuck to be tried again.
    Resume,
    /// An operator has found out what became of a step.
    Settle {
        /// Which step.
        step: usize,
        /// Whether it was done.
        happened: bool,
    },
}

/// What the coordinator does in the same transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Sends a command.
    Send {
        /// For which step.
        step: usize,
        /// Asking what.
        op: Op,
        /// Which try.
        attempt: u32,
    },
    /// Runs a local step, and decides again with what came of it.
    Run {
        /// Which step.
        step: usize,
        /// Which way.
        side: Side,
    },
    /// Runs the closing handler, and decides again with what came of it.
    Close,
}

/// What follows from one input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where the saga stands now.
    pub instance: Instance,
    /// What to do about it, in this order.
    pub effects: Vec<Effect>,
    /// Whether the input meant anything: false for what comes late or twice, and for what is asked
    /// too late. Nothing has changed then.
    pub accepted: bool,
}

/// How the closing handlers are tried again.
const CLOSING: RetryPolicy =
    RetryPolicy::exponential(Duration::from_millis(100), Duration::from_secs(30));

/// Decides. `jitter` in `0.0..=1.0` spreads the waits between tries.
#[must_use]
pub fn decide(
    plan: &Plan,
    instance: Instance,
    input: &Input,
    now: Timestamp,
    jitter: f64,
) -> Decision {
    let mut turn = Turn { plan, now, jitter, instance, effects: Vec::new() };
    let accepted = !turn.instance.state.is_ended() && turn.take(input);
    Decision { instance: turn.instance, effects: turn.effects, accepted }
}

/// When the saga must be looked at again, if nothing else happens before.
#[must_use]
pub fn wake_at(plan: &Plan, instance: &Instance) -> Option<Timestamp> {
    if instance.state.is_ended() {
        return None;
    }
    let turns_back = instance.state == State::Running && !is_committed(plan, instance);
    let dues = instance.steps.iter().filter_map(|step| step.due);
    dues.chain(instance.ending.due).chain(turns_back.then_some(instance.deadline)).min()
}

/// Whether the saga can no longer turn back: the pivot has or may have happened, or all is done.
#[must_use]
pub fn is_committed(plan: &Plan, instance: &Instance) -> bool {
    let closing = instance.ending.phase != Phase::Waiting;
    let pivoted = plan.pivot().is_some_and(|pivot| match plan.steps[pivot].place {
        // A local pivot that is not done is certainly not done.
        Place::Local => instance.steps[pivot].phase == Phase::Done,
        Place::Remote => {
            matches!(instance.steps[pivot].phase, Phase::Running | Phase::Unknown | Phase::Done)
        }
    });
    closing || pivoted
}

/// One decision in the making.
struct Turn<'a> {
    plan: &'a Plan,
    now: Timestamp,
    jitter: f64,
    instance: Instance,
    effects: Vec<Effect>,
}

impl Turn<'_> {
    fn take(&mut self, input: &Input) -> bool {
        match input {
            Input::Start => {
                self.go_forward();
                true
            }
            Input::Reply { step, op: Op::Undo, attempt, outcome } => {
                self.undo_answered(*step, *attempt, outcome)
            }
            Input::Reply { step, op, attempt, outcome } => {
                self.action_answered(*step, *op, *attempt, outcome)
            }
            Input::Local { step, side: Side::Action, outcome } => self.ran(*step, outcome),
            Input::Local { step, side: Side::Undo, outcome } => self.unran(*step, outcome),
            Input::Closed(outcome) => self.closed(outcome),
            Input::Timer => self.time_passed(),
            Input::Cancel => self.cancelled(),
            Input::Resume => self.resumed(),
            Input::Settle { step, happened } => self.settled_by_operator(*step, *happened),
        }
    }

    fn time_passed(&mut self) -> bool {
        let running = self.instance.state == State::Running;
        if running && self.instance.deadline <= self.now && !is_committed(self.plan, &self.instance)
        {
            self.turn_back(Failure {
                step: None,
                reason: "DEADLINE".into(),
                message: "the saga did not get far enough in time".into(),
            });
            return true;
        }
        let due: Vec<usize> = (0..self.plan.steps.len())
            .filter(|step| self.is_due(&self.instance.steps[*step]))
            .collect();
        let closing_due = self.is_due(&self.instance.ending);
        for step in &due {
            match self.instance.state {
                State::Running => self.action_due(*step),
                // Turning back halfway has dealt with the steps that follow.
                _ if running => break,
                _ => self.undo_due(*step),
            }
        }
        if closing_due {
            self.effects.push(Effect::Close);
        }
        closing_due || !due.is_empty()
    }

    fn is_due(&self, progress: &Progress) -> bool {
        progress.due.is_some_and(|due| due <= self.now)
    }

    fn cancelled(&mut self) -> bool {
        if is_committed(self.plan, &self.instance) {
            return self.instance.state == State::Compensating;
        }
        if self.instance.state == State::Running {
            self.turn_back(Failure {
                step: None,
                reason: "CANCELLED".into(),
                message: "it was cancelled".into(),
            });
        }
        true
    }

    fn resumed(&mut self) -> bool {
        if self.instance.parked.is_none() {
            return false;
        }
        for (step, progress) in self.plan.steps.iter().zip(&mut self.instance.steps) {
            if progress.due.is_some() && progress.tries >= step.retry.attempts_max {
                progress.due = Some(self.now);
            }
        }
        if self.instance.ending.due.is_some() {
            self.instance.ending.due = Some(self.now);
        }
        let stuck = self.is_stuck();
        let changed = self.time_passed();
        if changed && !stuck {
            self.instance.parked = None;
        }
        changed
    }

    fn settled_by_operator(&mut self, step: usize, happened: bool) -> bool {
        let unknown = self.instance.steps[step].phase == Phase::Unknown;
        if self.instance.state != State::Running || !unknown {
            return false;
        }
        if happened {
            self.done(step);
        } else {
            self.not_done(step, "NOT_DONE", "an operator found that it was not done");
        }
        true
    }

    fn close(&mut self) {
        if self.instance.ending.phase == Phase::Waiting {
            let due = Some(self.now);
            self.instance.ending =
                Progress { phase: Phase::Running, tries: 0, due, begun: Some(self.now) };
            self.effects.push(Effect::Close);
        }
    }

    fn closed(&mut self, outcome: &Outcome) -> bool {
        if self.instance.ending.phase != Phase::Running {
            return false;
        }
        match outcome {
            Outcome::Done => {
                self.instance.ending =
                    Progress { phase: Phase::Done, due: None, ..self.instance.ending };
                self.instance.parked = None;
                self.instance.state = match self.instance.state {
                    State::Running => State::Completed,
                    _ => State::Compensated,
                };
            }
            Outcome::Refused { .. } | Outcome::Failed(_) => {
                let tries = self.instance.ending.tries + 1;
                self.instance.ending.tries = tries;
                self.instance.ending.due = Some(self.now + self.backoff(&CLOSING, tries));
                if is_alarming(&CLOSING, tries) {
                    self.park(format!("the closing handler fails: {}", describe(outcome)));
                }
            }
        }
        true
    }

    fn park(&mut self, why: String) {
        self.instance.parked = Some(why);
    }

    /// Progress was made: whatever was alarming is no longer, but what only an operator can settle.
    fn unpark(&mut self) {
        if !self.is_stuck() {
            self.instance.parked = None;
        }
    }

    /// Whether a step waits for an operator.
    fn is_stuck(&self) -> bool {
        self.instance.steps.iter().any(|step| step.phase == Phase::Unknown && step.due.is_none())
    }

    /// How long to wait after this many tries, were there no last one.
    fn backoff(&self, policy: &RetryPolicy, tries: u32) -> Duration {
        match policy.attempts(u32::MAX).decide(tries, Retry::Later, self.jitter) {
            retry::Decision::RetryAfter(wait) => wait,
            retry::Decision::GiveUp => policy.delay_max,
        }
    }

    fn may_turn_back(&self, step: usize) -> bool {
        self.plan.steps[step].role == Role::Compensable
    }
}

/// Whether an operator should hear of this many tries.
fn is_alarming(policy: &RetryPolicy, tries: u32) -> bool {
    tries > 0 && tries.is_multiple_of(policy.attempts_max.max(1))
}

fn describe(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done => "done".into(),
        Outcome::Refused { reason, message } => format!("{reason}: {message}"),
        Outcome::Failed(error) => error.clone(),
    }
}

#[cfg(test)]
mod tests;
