//! Everything that describes a consumer.

use antiphon_messaging::{Consumer, ConsumerError, Messaging, Worker};
use antiphon_outbox::{DatabaseConsumer, InboxStore};

/// Describes a consumer, and builds what does the work.
pub trait Consume {
    /// Makes the component that consumes.
    ///
    /// # Errors
    /// The description is not complete, or the broker cannot do what it asks.
    fn build(self, messaging: &Messaging) -> Result<Worker, ConsumerError>;
}

impl Consume for Consumer {
    fn build(self, messaging: &Messaging) -> Result<Worker, ConsumerError> {
        Self::build(self, messaging)
    }
}

impl<S: InboxStore> Consume for DatabaseConsumer<S> {
    fn build(self, messaging: &Messaging) -> Result<Worker, ConsumerError> {
        self.into_consumer(&messaging.telemetry).build(messaging)
    }
}
