//! A broker of any kind behind one type.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use antiphon_core::BoxFuture;
use antiphon_telemetry::Telemetry;

use crate::message::Message;
use crate::metrics::Metrics;
use crate::port::{
    Broker, Capabilities, DeadLetters, Inbox, Operate, PublishError, Receipt, Sent, Source,
    SubscribeError, Subscription, Topology,
};

/// Any [`Broker`]: what the application chose by its settings. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct AnyBroker {
    broker: Arc<dyn Erased>,
    metrics: Option<Metrics>,
}

/// [`Broker`] with boxed futures, so that it can be a trait object.
trait Erased: Send + Sync {
    fn capabilities(&self) -> Capabilities;
    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), SubscribeError>>;
    fn publish(&self, batch: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, PublishError>>>;
    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>>;
    fn inbox(&self) -> BoxFuture<'_, Result<Box<dyn Inbox>, SubscribeError>>;
    fn answer<'a>(
        &'a self,
        address: &'a str,
        message: Message,
    ) -> BoxFuture<'a, Result<(), PublishError>>;
    fn operate(&self) -> Option<Arc<dyn Operate>>;
    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>>;
}

impl<B: Broker> Erased for B {
    fn capabilities(&self) -> Capabilities {
        Broker::capabilities(self)
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), SubscribeError>> {
        Box::pin(Broker::declare(self, topology))
    }

    fn publish(&self, batch: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, PublishError>>> {
        Box::pin(Broker::publish(self, batch))
    }

    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        Box::pin(Broker::subscribe(self, subscription))
    }

    fn inbox(&self) -> BoxFuture<'_, Result<Box<dyn Inbox>, SubscribeError>> {
        Box::pin(Broker::inbox(self))
    }

    fn answer<'a>(
        &'a self,
        address: &'a str,
        message: Message,
    ) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(Broker::answer(self, address, message))
    }

    fn operate(&self) -> Option<Arc<dyn Operate>> {
        Broker::operate(self)
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        Broker::dead_letters(self)
    }
}

impl AnyBroker {
    /// This broker.
    #[must_use]
    pub fn new(broker: impl Broker) -> Self {
        Self { broker: Arc::new(broker), metrics: None }
    }

    /// The same broker, counting what is published through this handle.
    #[must_use]
    pub fn measured(mut self, telemetry: &Telemetry) -> Self {
        self.metrics = Some(Metrics::of(telemetry));
        self
    }

    /// See [`Broker::capabilities`].
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.broker.capabilities()
    }

    /// See [`Broker::declare`].
    ///
    /// # Errors
    /// A topic or group exists with other settings, or the broker does not answer.
    pub async fn declare(&self, topology: &Topology) -> Result<(), SubscribeError> {
        self.broker.declare(topology).await
    }

    /// See [`Broker::publish`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the outcome unknown ([`Sent::Maybe`](crate::Sent::Maybe)).
    pub async fn publish(&self, batch: Vec<Message>) -> Vec<Result<Receipt, PublishError>> {
        let Some(metrics) = &self.metrics else {
            return self.broker.publish(batch).await;
        };
        let topics: Vec<String> = batch.iter().map(|message| message.topic.clone()).collect();
        let answers = self.broker.publish(batch).await;
        let mut counts: BTreeMap<(&str, &'static str), u64> = BTreeMap::new();
        for (topic, answer) in topics.iter().zip(&answers) {
            let outcome = match answer {
                Ok(_) => "confirmed",
                Err(PublishError { sent: Sent::Maybe, .. }) => "unknown",
                Err(PublishError { sent: Sent::No, .. }) => "refused",
            };
            *counts.entry((topic, outcome)).or_default() += 1;
        }
        for ((topic, outcome), count) in counts {
            metrics.sent(topic, outcome, count);
        }
        answers
    }

    /// See [`Broker::subscribe`].
    ///
    /// # Errors
    /// The group was not declared, or cannot be read as asked.
    pub async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Box<dyn Source>, SubscribeError> {
        self.broker.subscribe(subscription).await
    }

    /// See [`Broker::inbox`].
    ///
    /// # Errors
    /// The broker does not answer, or cannot do this.
    pub async fn inbox(&self) -> Result<Box<dyn Inbox>, SubscribeError> {
        self.broker.inbox().await
    }

    /// See [`Broker::answer`].
    ///
    /// # Errors
    /// The broker does not answer, or cannot do this, or the message is too large.
    pub async fn answer(&self, address: &str, message: Message) -> Result<(), PublishError> {
        self.broker.answer(address, message).await
    }

    /// See [`Broker::operate`].
    #[must_use]
    pub fn operate(&self) -> Option<Arc<dyn Operate>> {
        self.broker.operate()
    }

    /// See [`Broker::dead_letters`].
    #[must_use]
    pub fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        self.broker.dead_letters()
    }
}

impl fmt::Debug for AnyBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AnyBroker").field(&self.capabilities()).finish()
    }
}
