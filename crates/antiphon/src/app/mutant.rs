//! A deliberate bug, to show that the tests under faults would find one: every message is acknowledged
//! before it is handled, so what a crash interrupts is lost.
//!
//! It exists only with the feature `faults-mutant`, and works only where the variable
//! `SHOP_FAULTS_MUTANT` is `ack-before-commit`.

use std::sync::Arc;

use antiphon_core::BoxFuture;
use antiphon_messaging::{
    AnyBroker, Broker, Capabilities, DeadLetters, Delivery, Fetched, Inbox, Message, Operate,
    PublishError, Receipt, Settle, Settled, Settlement, Settling, Source, SubscribeError,
    Subscription, Topology,
};

/// The broker, with the bug where it was asked for.
#[expect(clippy::disallowed_methods, reason = "a switch of tests, not a setting")]
pub(super) fn wrap(broker: AnyBroker) -> AnyBroker {
    match std::env::var("SHOP_FAULTS_MUTANT") {
        Ok(name) if name == "ack-before-commit" => AnyBroker::new(AckFirst(broker)),
        _ => broker,
    }
}

struct AckFirst(AnyBroker);

impl Broker for AckFirst {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn declare(&self, topology: &Topology) -> Result<(), SubscribeError> {
        self.0.declare(topology).await
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<Receipt, PublishError>> {
        self.0.publish(batch).await
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Box<dyn Source>, SubscribeError> {
        let source = self.0.subscribe(subscription).await?;
        Ok(Box::new(AckFirstSource(source)))
    }

    async fn inbox(&self) -> Result<Box<dyn Inbox>, SubscribeError> {
        self.0.inbox().await
    }

    async fn answer(&self, address: &str, message: Message) -> Result<(), PublishError> {
        self.0.answer(address, message).await
    }

    fn operate(&self) -> Option<Arc<dyn Operate>> {
        self.0.operate()
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        self.0.dead_letters()
    }
}

struct AckFirstSource(Box<dyn Source>);

impl Source for AckFirstSource {
    fn fetch(&mut self, credits: usize) -> BoxFuture<'_, Fetched> {
        Box::pin(async move {
            match self.0.fetch(credits).await {
                Fetched::Deliveries(all) => {
                    Fetched::Deliveries(all.into_iter().map(acknowledge).collect())
                }
                other => other,
            }
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.0.close()
    }
}

fn acknowledge(delivery: Delivery) -> Delivery {
    let (message, attempt, lane) = (Arc::clone(&delivery.message), delivery.attempt, delivery.lane);
    drop(delivery.settle(Settlement::Ack));
    Delivery::new(message, attempt, lane, 0, Arc::new(Gone))
}

/// Whatever becomes of a message that was acknowledged: nobody hears of it.
struct Gone;

impl Settle for Gone {
    fn settle(&self, _: u64, _: Settlement) -> Settling {
        Settling::Done(Settled::Confirmed)
    }
}
