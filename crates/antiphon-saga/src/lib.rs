//! Sagas.

mod decide;
mod definition;
mod id;
mod instance;
mod local;
mod plan;
mod port;
mod rejection;
mod step;

pub use decide::{Decision, Effect, Input, Op, Outcome, decide, is_committed, wake_at};
pub use definition::{DefinitionError, Saga, SagaBuilder};
pub use id::SagaId;
pub use instance::{Failure, Instance, Phase, Progress};
pub use local::{AsyncWork, LocalWork};
pub use plan::{Place, Plan, Role, StepPlan};
pub use port::{
    BarrierKey, BarrierStore, Passage, SagaCount, SagaFilter, SagaRow, SagaStore, Side, State,
    StoredReply,
};
pub use rejection::Rejection;
pub use step::Step;
