//! The broker as one node sees it: the real one in memory, behind a bad connection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use antiphon_broker_memory::MemoryBroker;
use antiphon_core::{BoxFuture, MessageId};
use antiphon_messaging::{
    Broker, Capabilities, DeadLetters, Delivery, Fetched, Message, PublishError, PublishErrorKind,
    Receipt, Sent, Settle, Settled, Settlement, Settling, Source, SubscribeError, Subscription,
    Topology,
};
use parking_lot::Mutex;

use crate::Mutant;
use crate::faults::{Edge, NodeFaults};

/// What was delivered to which group in a run, by any node.
pub(crate) type Delivered = Arc<Mutex<BTreeSet<(String, MessageId)>>>;

/// A node's connection to the broker.
#[derive(Clone)]
pub(crate) struct BadConnection {
    pub(crate) broker: MemoryBroker,
    pub(crate) node: Arc<NodeFaults>,
    pub(crate) delivered: Delivered,
    pub(crate) mutant: Option<Mutant>,
}

type Answers = Vec<Result<Receipt, PublishError>>;

fn refused(message: &Message, sent: Sent) -> Result<Receipt, PublishError> {
    let topic = message.topic.clone();
    Err(PublishError { topic, kind: PublishErrorKind::Disconnected, sent, source: None })
}

impl BadConnection {
    fn answer_lost(&self, batch: &[Message]) -> Answers {
        self.node.faults.bite(|bites| bites.unknown_publications += 1);
        batch.iter().map(|message| refused(message, Sent::Maybe)).collect()
    }

    /// Publishes all, those of different keys in any order.
    async fn shuffled(&self, batch: Vec<Message>) -> Answers {
        let mut by_key: BTreeMap<String, Vec<(usize, Message)>> = BTreeMap::new();
        let count = batch.len();
        for (index, message) in batch.into_iter().enumerate() {
            by_key.entry(message.key.clone()).or_default().push((index, message));
        }
        let mut keys: Vec<_> = by_key.into_values().collect();
        let mut answers: Vec<Option<Result<Receipt, PublishError>>> =
            (0..count).map(|_| None).collect();
        while !keys.is_empty() {
            let key = keys.swap_remove(self.node.faults.index(keys.len()));
            let (indexes, messages): (Vec<_>, Vec<_>) = key.into_iter().unzip();
            for (index, answer) in indexes.into_iter().zip(self.broker.publish(messages).await) {
                answers[index] = Some(answer);
            }
        }
        answers.into_iter().flatten().collect()
    }

    /// Lets the broker deliver one of them again, some time later.
    fn duplicate(&self, batch: &[Message]) {
        let message = batch[self.node.faults.index(batch.len())].clone();
        let (broker, after) = (self.broker.clone(), self.node.faults.millis(0..4_000));
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            broker.publish(vec![message]).await
        });
    }
}

impl Broker for BadConnection {
    fn capabilities(&self) -> Capabilities {
        self.broker.capabilities()
    }

    async fn declare(&self, topology: &Topology) -> Result<(), SubscribeError> {
        self.broker.declare(topology).await
    }

    async fn publish(&self, batch: Vec<Message>) -> Answers {
        let rates = self.node.rates();
        let edge = self.node.edge();
        if edge == Edge::StopsBefore {
            return std::future::pending().await;
        }
        if self.node.strikes(rates.publish_refused) {
            // Some of it may have arrived; what comes behind in a key must not.
            let mut batch = batch;
            let kept = self.node.faults.index(batch.len() + 1);
            let rest = batch.split_off(kept);
            let mut answers = self.broker.publish(batch).await;
            answers.extend(rest.iter().map(|message| refused(message, Sent::No)));
            return answers;
        }
        if self.node.strikes(rates.publish_lost) {
            let answers = self.answer_lost(&batch);
            if self.node.faults.coin() {
                let _ = self.broker.publish(batch).await;
            }
            return answers;
        }
        if self.node.strikes(rates.duplicated) {
            self.duplicate(&batch);
        }
        let answers = if self.node.strikes(rates.delayed) {
            tokio::time::sleep(self.node.faults.millis(1..3_000)).await;
            self.shuffled(batch).await
        } else {
            self.broker.publish(batch).await
        };
        match edge {
            Edge::StopsAfter => std::future::pending().await,
            _ => answers,
        }
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Box<dyn Source>, SubscribeError> {
        let group = subscription.group.clone();
        let inner = self.broker.subscribe(subscription).await?;
        let held = Arc::new(Held { node: Arc::clone(&self.node), deliveries: Mutex::default() });
        Ok(Box::new(BadSource { inner, group, held, connection: self.clone() }))
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        self.broker.dead_letters()
    }
}

struct BadSource {
    inner: Box<dyn Source>,
    group: String,
    held: Arc<Held>,
    connection: BadConnection,
}

impl BadSource {
    /// Puts the node's own end of the connection between the engine and the broker.
    fn wrap(&self, delivery: Delivery) -> Delivery {
        let BadConnection { node, delivered, mutant, .. } = &self.connection;
        let message = Arc::clone(&delivery.message);
        if !delivered.lock().insert((self.group.clone(), message.id)) {
            node.faults.bite(|bites| bites.redeliveries += 1);
        }
        let (attempt, lane) = (delivery.attempt, delivery.lane);
        let token = if *mutant == Some(Mutant::AckBeforeCommit) {
            drop(delivery.settle(Settlement::Ack));
            u64::MAX
        } else {
            self.held.take(delivery)
        };
        Delivery::new(message, attempt, lane, token, Arc::<Held>::clone(&self.held))
    }
}

impl Source for BadSource {
    fn fetch(&mut self, credits: usize) -> BoxFuture<'_, Fetched> {
        Box::pin(async move {
            let node = Arc::clone(&self.connection.node);
            if node.has_crashed() {
                return std::future::pending().await;
            }
            if node.strikes(node.rates().source_lost) {
                self.held.deliveries.lock().clear();
                return Fetched::Lost("injected".into());
            }
            match self.inner.fetch(credits).await {
                Fetched::Deliveries(deliveries) => Fetched::Deliveries(
                    deliveries.into_iter().map(|delivery| self.wrap(delivery)).collect(),
                ),
                other => other,
            }
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.inner.close()
    }
}

/// Deliveries that the engine has, by our own tokens.
struct Held {
    node: Arc<NodeFaults>,
    deliveries: Mutex<BTreeMap<u64, Delivery>>,
}

impl Held {
    fn take(&self, delivery: Delivery) -> u64 {
        let mut deliveries = self.deliveries.lock();
        let token = deliveries.last_key_value().map_or(0, |(last, _)| last + 1);
        deliveries.insert(token, delivery);
        token
    }
}

impl Settle for Held {
    fn settle(&self, token: u64, settlement: Settlement) -> Settling {
        let Some(delivery) = self.deliveries.lock().remove(&token) else {
            return Settling::Done(Settled::Stale);
        };
        // What is dropped below comes again.
        match self.node.edge() {
            Edge::StopsBefore => {
                drop(delivery);
                return Settling::Wait(Box::pin(std::future::pending()));
            }
            Edge::StopsAfter => {
                drop(delivery.settle(settlement));
                return Settling::Wait(Box::pin(std::future::pending()));
            }
            Edge::Goes => {}
        }
        if self.node.strikes(self.node.rates().settle_lost) {
            let is_ack = settlement == Settlement::Ack;
            if self.node.faults.coin() {
                drop(delivery);
                return Settling::Done(if is_ack { Settled::Sent } else { Settled::Stale });
            }
            drop(delivery.settle(settlement));
            return Settling::Done(Settled::Stale);
        }
        delivery.settle(settlement)
    }
}
