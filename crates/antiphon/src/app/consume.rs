//! Everything that describes a consumer.

use antiphon_core::Component;
use antiphon_messaging::{Consumer, ConsumerError, Messaging, Topology, Worker};
use antiphon_outbox::{DatabaseConsumer, InboxStore, OutboxStore};
use antiphon_saga::{BarrierStore, Coordinator, Participant, Participation, SagaStore, Sagas};

/// Describes something that consumes messages, and builds what does it: a [`Consumer`], a consumer
/// of a database, a participant of sagas, the coordinator of sagas.
pub trait Consume {
    /// What does the work.
    type Worker: Component;

    /// Makes the component, and says which topics and groups it needs.
    ///
    /// # Errors
    /// The description is not complete, or the broker cannot do what it asks.
    fn build(self, messaging: &Messaging) -> Result<(Self::Worker, Topology), ConsumerError>;
}

impl Consume for Consumer {
    type Worker = Worker;

    fn build(self, messaging: &Messaging) -> Result<(Worker, Topology), ConsumerError> {
        let worker = Self::build(self, messaging)?;
        let topology = worker.topology().clone();
        Ok((worker, topology))
    }
}

impl<S: OutboxStore + InboxStore> Consume for DatabaseConsumer<S> {
    type Worker = Worker;

    fn build(self, messaging: &Messaging) -> Result<(Worker, Topology), ConsumerError> {
        Consume::build(Consumer::from(self), messaging)
    }
}

impl<S: BarrierStore + OutboxStore + InboxStore> Consume for Participant<S> {
    type Worker = Participation<S>;

    fn build(self, messaging: &Messaging) -> Result<(Participation<S>, Topology), ConsumerError> {
        let participation = Self::build(self, messaging)?;
        let topology = participation.topology().clone();
        Ok((participation, topology))
    }
}

impl<S: SagaStore + OutboxStore + InboxStore> Consume for Sagas<S> {
    type Worker = Coordinator<S>;

    fn build(self, messaging: &Messaging) -> Result<(Coordinator<S>, Topology), ConsumerError> {
        let coordinator = Self::build(self, messaging)?;
        let topology = coordinator.topology().clone();
        Ok((coordinator, topology))
    }
}
