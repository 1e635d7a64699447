//! The shape of a definition, without its types: all that the decisions depend on.

use std::time::Duration;

use antiphon_core::RetryPolicy;

/// Most steps of one definition.
pub const STEPS_MAX: usize = 64;

/// What a step means for the way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Can be undone; lies before the pivot.
    Compensable,
    /// The point of no return: once it may have happened, the saga only goes forward.
    Pivot,
    /// Comes after the pivot: tried until it is done.
    ForwardOnly,
}

/// Who does the work of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A participant, asked by a command.
    Remote,
    /// The coordinator, in the transaction that advances the saga.
    Local,
}

/// The shape of one step.
#[derive(Clone, Debug)]
pub struct StepPlan {
    /// Unique within the definition.
    pub name: &'static str,
    /// See [`Role`].
    pub role: Role,
    /// See [`Place`].
    pub place: Place,
    /// Whether there is something to undo.
    pub undo: bool,
    /// Whether the participant can be asked what became of it.
    pub query: bool,
    /// Whether it must never be asked for again while its outcome is not known.
    pub at_most_once: bool,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How often and how fast to ask again.
    pub retry: RetryPolicy,
    /// The steps that must be done before, as bits.
    pub after: u64,
}

/// The shape of a definition.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The steps; each comes after those in its `after`.
    pub steps: Vec<StepPlan>,
    /// How long the saga may take to reach its pivot, or its end without one.
    pub deadline: Duration,
}

impl Plan {
    /// The point of no return, if there is one.
    #[must_use]
    pub fn pivot(&self) -> Option<usize> {
        self.steps.iter().position(|step| step.role == Role::Pivot)
    }

    /// The step of this name.
    #[must_use]
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.steps.iter().position(|step| step.name == name)
    }

    /// Whether `later` has to wait for `earlier`.
    #[must_use]
    pub fn depends(&self, later: usize, earlier: usize) -> bool {
        self.steps[later].after & (1 << earlier) != 0
    }
}
