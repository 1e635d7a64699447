//! Sagas: business processes over several services that end completed or compensated.
//!
//! A [`Saga`] is defined once, in ordinary Rust: steps, how each is undone, where the point of no
//! return lies. Whoever wants one starts it in the transaction of the business row that it is about
//! ([`Saga::start`]). From then on the [`Coordinator`] advances it: every reply and every timer is
//! one transaction that holds the saga's progress, the work of local steps and the next commands.
//!
//! ```ignore
//! Saga::<PlaceOrder, Sqlite>::define("place-order", 1)
//!     .deadline(Duration::from_secs(600))
//!     .step(Step::remote("reserve", reserve).undo(release))
//!     .step(Step::remote("charge", charge).undo(refund).timeout(Duration::from_secs(15)))
//!     .step(Step::local("confirm", confirm).pivot())
//!     .step(Step::remote("ship", ship).forward_only())
//!     .on_failure(|order, failure| order.refusal = failure.message.clone())
//!     .on_compensated(cancel)
//!     .build()?
//! ```
//!
//! The services that do the steps are participants ([`Participants::participant`]). Each command
//! passes a barrier in the participant's own transaction, so that it takes effect once, an undo of
//! what never happened does nothing, and an action that comes after its undo never happens.
//!
//! What happens next is decided by one pure function, [`decide`]; everything else carries it out.

mod batch;
mod coordinator;
mod decide;
mod definition;
mod engine;
mod id;
mod instance;
mod local;
mod machine;
mod metrics;
mod operator;
mod participant;
mod plan;
mod port;
mod rejection;
mod start;
mod step;
mod wire;
mod wish;

pub use coordinator::{Coordinator, Sagas};
pub use decide::{Decision, Effect, Input, Op, Outcome, decide, is_committed, wake_at};
pub use definition::{DefinitionError, Saga, SagaBuilder};
pub use engine::UnknownDefinitions;
pub use id::SagaId;
pub use instance::{Failure, Instance, Phase, Progress};
pub use local::{AsyncWork, LocalWork};
pub use operator::{Intervention, SagaOperator, SagaView, StepView};
pub use participant::{
    Participant, Participants, Participate, ParticipateLater, Participation, Ticket,
};
pub use plan::{Place, Plan, Role, STEPS_MAX, StepPlan};
pub use port::{
    BarrierKey, BarrierStore, Passage, Passed, SagaCount, SagaFilter, SagaRow, SagaStore, Side,
    State, StoredReply,
};
pub use rejection::Rejection;
pub use start::Started;
pub use step::Step;
pub use wire::InvalidTicket;
pub use wish::Wish;
