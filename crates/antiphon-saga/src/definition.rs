//! What a saga does: the builder that users write, and what it builds.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_outbox::Store;
use buffa::Message as Protobuf;

use crate::instance::Failure;
use crate::local::{BoxedWork, LocalWork};
use crate::plan::{Place, Plan, Role, STEPS_MAX, StepPlan};
use crate::step::{After, Step, Work};

/// How long a saga may take to its pivot unless its definition says otherwise.
const DEADLINE: Duration = Duration::from_secs(600);

/// A definition contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("saga {kind}, version {version}{}: {problem}", .step.map(|name| format!(", step {name}")).unwrap_or_default())]
pub struct DefinitionError {
    /// Which saga.
    pub kind: &'static str,
    /// Which version.
    pub version: u32,
    /// Which step, if it is one.
    pub step: Option<&'static str>,
    /// What is wrong.
    pub problem: &'static str,
}

type TakeFailure<D> = Arc<dyn Fn(&mut D, &Failure) + Send + Sync>;

/// What a saga does, ready to run. Cheap to clone.
///
/// `D` is what the saga knows: a protobuf message that is stored with it. `S` is the database of
/// the service that owns it.
pub struct Saga<D, S>(pub(crate) Arc<Definition<D, S>>);

impl<D, S> Clone for Saga<D, S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

pub(crate) struct Definition<D, S> {
    pub(crate) kind: &'static str,
    pub(crate) version: u32,
    pub(crate) plan: Plan,
    pub(crate) work: Vec<Work<D, S>>,
    pub(crate) on_failure: Option<TakeFailure<D>>,
    pub(crate) on_completed: Option<Arc<dyn BoxedWork<D, S>>>,
    pub(crate) on_compensated: Option<Arc<dyn BoxedWork<D, S>>>,
}

impl<D: Protobuf + 'static, S: Store> Saga<D, S> {
    /// Begins the definition of a saga type. The version grows whenever the steps change; sagas
    /// that run already keep to theirs, so its definition must stay until they have ended.
    pub fn define(kind: &'static str, version: u32) -> SagaBuilder<D, S> {
        SagaBuilder {
            kind,
            version,
            deadline: DEADLINE,
            steps: Vec::new(),
            on_failure: None,
            on_completed: None,
            on_compensated: None,
        }
    }

    /// The name of the type.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.0.kind
    }

    /// The version of the definition.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.0.version
    }
}

impl<D, S> fmt::Debug for Saga<D, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Saga")
            .field("kind", &self.0.kind)
            .field("version", &self.0.version)
            .field("plan", &self.0.plan)
            .finish_non_exhaustive()
    }
}

/// A saga in the making; see [`Saga::define`].
#[must_use = "a definition does nothing until it is built"]
pub struct SagaBuilder<D, S> {
    kind: &'static str,
    version: u32,
    deadline: Duration,
    steps: Vec<Step<D, S>>,
    on_failure: Option<TakeFailure<D>>,
    on_completed: Option<Arc<dyn BoxedWork<D, S>>>,
    on_compensated: Option<Arc<dyn BoxedWork<D, S>>>,
}

impl<D: Protobuf + 'static, S: Store> SagaBuilder<D, S> {
    /// How long the saga may take to its pivot (without a pivot, to its end) before it turns back;
    /// ten minutes by default.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Adds a step, which begins when the one before it is done unless it says otherwise.
    pub fn step(mut self, step: Step<D, S>) -> Self {
        self.steps.push(step);
        self
    }

    /// Takes into the saga's data why it turned back, once, when it does.
    pub fn on_failure(mut self, take: impl Fn(&mut D, &Failure) + Send + Sync + 'static) -> Self {
        self.on_failure = Some(Arc::new(take));
        self
    }

    /// Runs when all steps are done, in the transaction that completes the saga.
    pub fn on_completed(mut self, work: impl LocalWork<D, S>) -> Self {
        self.on_completed = Some(Arc::new(work));
        self
    }

    /// Runs when everything is undone, in the transaction that ends the saga.
    pub fn on_compensated(mut self, work: impl LocalWork<D, S>) -> Self {
        self.on_compensated = Some(Arc::new(work));
        self
    }

    /// Checks the definition.
    ///
    /// # Errors
    /// The steps contradict each other: see [`DefinitionError::problem`].
    pub fn build(self) -> Result<Saga<D, S>, DefinitionError> {
        let error = |step, problem| DefinitionError {
            kind: self.kind,
            version: self.version,
            step,
            problem,
        };
        if self.steps.is_empty() {
            return Err(error(None, "has no steps"));
        }
        if self.steps.len() > STEPS_MAX {
            return Err(error(None, "has more than 64 steps"));
        }
        let mut plans: Vec<StepPlan> = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let after = ancestors(&plans, step)
                .and_then(|after| check(&plans, step).map(|()| after))
                .map_err(|problem| error(Some(step.name), problem))?;
            plans.push(StepPlan {
                name: step.name,
                role: step.role,
                place: step.place(),
                undo: step.has_undo(),
                query: step.has_query(),
                at_most_once: step.at_most_once,
                timeout: step.timeout,
                retry: step.retry,
                after,
            });
        }
        let plan = Plan { steps: plans, deadline: self.deadline };
        check_roles(&plan).map_err(|(step, problem)| error(Some(step), problem))?;
        Ok(Saga(Arc::new(Definition {
            kind: self.kind,
            version: self.version,
            plan,
            work: self.steps.into_iter().map(|step| step.work).collect(),
            on_failure: self.on_failure,
            on_completed: self.on_completed,
            on_compensated: self.on_compensated,
        })))
    }
}

impl<D, S> fmt::Debug for SagaBuilder<D, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SagaBuilder")
            .field("kind", &self.kind)
            .field("version", &self.version)
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

/// All steps that must be done before this one, also through others, as bits.
fn ancestors<D, S>(plans: &[StepPlan], step: &Step<D, S>) -> Result<u64, &'static str> {
    let direct: Vec<usize> = match &step.after {
        After::Previous => plans.len().checked_sub(1).into_iter().collect(),
        After::Named(names) => names
            .iter()
            .map(|name| plans.iter().position(|plan| plan.name == *name))
            .collect::<Option<_>>()
            .ok_or("comes after a step that is not declared before it")?,
    };
    Ok(direct.into_iter().fold(0, |bits, index| bits | 1 << index | plans[index].after))
}

fn check<D: Protobuf + 'static, S: Store>(
    plans: &[StepPlan],
    step: &Step<D, S>,
) -> Result<(), &'static str> {
    let compensable = step.role == Role::Compensable;
    match step {
        _ if step.misuse.is_some() => Err(step.misuse.unwrap_or_default()),
        _ if !is_name(step.name) => {
            Err("may only be named by lower-case letters, digits and dashes")
        }
        _ if plans.iter().any(|plan| plan.name == step.name) => Err("has the name of another step"),
        _ if step.retry.attempts_max == 0 => Err("is to be tried 0 times; at least 1 is needed"),
        _ if !compensable && (step.has_undo() || step.nothing_to_undo) => {
            Err("says how it is undone, but is never undone: only steps before the pivot are")
        }
        _ if compensable && step.has_undo() == step.nothing_to_undo => {
            Err("needs either an undo or nothing_to_undo")
        }
        _ if step.at_most_once && step.place() == Place::Local => {
            Err("is local, so it happens at most once in any case")
        }
        _ if step.has_query() && !step.at_most_once => {
            Err("has a query, which only at_most_once steps need")
        }
        _ => Ok(()),
    }
}

/// Names of steps stand in attributes, tickets and labels.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.bytes().all(plain)
}

/// Before the pivot everything can be undone; nothing but the pivot itself may fail beside or after
/// it.
fn check_roles(plan: &Plan) -> Result<(), (&'static str, &'static str)> {
    let pivot = plan.pivot();
    for (index, step) in plan.steps.iter().enumerate() {
        let problem = match (step.role, pivot) {
            (Role::Pivot, Some(pivot)) if pivot != index => Some("is a second pivot"),
            (Role::ForwardOnly, None) => Some("is forward-only, but there is no pivot"),
            (Role::ForwardOnly, Some(pivot)) if !plan.depends(index, pivot) => {
                Some("is forward-only, but does not come after the pivot")
            }
            (Role::Compensable, Some(pivot)) if !plan.depends(pivot, index) => {
                Some("is not forward-only, but does not come before the pivot")
            }
            _ => None,
        };
        if let Some(problem) = problem {
            return Err((step.name, problem));
        }
    }
    Ok(())
}
