//! What advances the sagas of one service: the component that the application runs.

mod timers;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{BoxError, BoxFuture, Component, Shutdown, Stage};
use antiphon_messaging::{Consumer, ConsumerError, Handler, Incoming, Messaging, Topology, Worker};
use antiphon_outbox::{Database, InboxStore, OutboxStore};
use antiphon_telemetry::Telemetry;
use buffa::Message as Protobuf;

use crate::batch::{self, Batches, Handled};
use crate::engine::Engine;
use crate::machine::Machine;
use crate::metrics::Metrics;
use crate::port::SagaStore;
use crate::{Saga, SagaOperator, Wish, wire, wish};
use timers::Timers;

/// How long to wait before asking a store again that did not answer.
const CHECK_AGAIN: Duration = Duration::from_millis(500);
/// How many replies are taken in together where that helps.
const BATCH_MAX: usize = 32;

/// The saga types of one service.
///
/// ```ignore
/// let sagas = Sagas::of(&db, &telemetry).saga(&place_order);
/// let operator = sagas.operator();
/// app.run(sagas.build(&messaging)?);
/// ```
#[must_use = "sagas do not move until they are built and run"]
pub struct Sagas<S: OutboxStore> {
    database: Database<S>,
    machines: BTreeMap<(&'static str, u32), Arc<dyn Machine<S>>>,
    telemetry: Telemetry,
    retention: Duration,
}

impl<S: SagaStore + OutboxStore + InboxStore> Sagas<S> {
    /// None yet, of the service that owns this database.
    pub fn of(database: &Database<S>, telemetry: &Telemetry) -> Self {
        Self {
            database: database.clone(),
            machines: BTreeMap::new(),
            telemetry: telemetry.clone(),
            retention: Duration::from_secs(7 * 24 * 3_600),
        }
    }

    /// Adds a type, or another version of one: every version that still has running sagas must be
    /// there.
    pub fn saga<D: Protobuf + 'static>(mut self, saga: &Saga<D, S>) -> Self {
        self.machines.insert((saga.kind(), saga.version()), Arc::<_>::clone(&saga.0) as _);
        self
    }

    /// How long an ended saga is remembered, so that asking for it again does not begin it again;
    /// seven days by default.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// What looks at these sagas and intervenes.
    #[must_use]
    pub fn operator(&self) -> SagaOperator<S> {
        SagaOperator::new(self.engine())
    }

    fn engine(&self) -> Arc<Engine<S>> {
        Arc::new(Engine {
            group: wire::reply_topic(self.database.service()),
            database: self.database.clone(),
            machines: self.machines.clone(),
            metrics: Metrics::of(&self.telemetry),
            telemetry: self.telemetry.clone(),
        })
    }

    /// Makes the component that advances them.
    ///
    /// # Errors
    /// The broker cannot do what is needed.
    pub fn build(self, messaging: &Messaging) -> Result<Coordinator<S>, ConsumerError> {
        let engine = self.engine();
        let replies = Consumer::group(&engine.group)
            .topic(&engine.group)
            .handler(Replies(Arc::clone(&engine)))
            .ordered();
        // The rows of the sagas themselves are locked in their order.
        let together = self.database.store().one_writer()
            || !self.machines.values().any(|machine| machine.works_itself());
        let replies = batch::arrange(replies, together, None, BATCH_MAX);
        let replies = replies.build(messaging)?;
        let timers = Timers::new(Arc::clone(&engine), self.retention);
        let name = format!("sagas {}", engine.database.service());
        Ok(Coordinator { name, engine, replies, timers })
    }
}

impl<S: OutboxStore> fmt::Debug for Sagas<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sagas").field("types", &self.machines.keys()).finish_non_exhaustive()
    }
}

/// Advances the sagas of one service, by replies and by timers. Any number of processes may do so
/// for the same database: replies are shared by their group, timers by leases.
#[must_use = "a coordinator does nothing until it is run"]
pub struct Coordinator<S: OutboxStore> {
    name: String,
    engine: Arc<Engine<S>>,
    replies: Worker,
    timers: Timers<S>,
}

impl<S: OutboxStore> Coordinator<S> {
    /// The topic and the group of the replies.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        self.replies.topology()
    }
}

impl<S: SagaStore + OutboxStore + InboxStore> Component for Coordinator<S> {
    fn name(&self) -> &str {
        &self.name
    }

    fn stage(&self) -> Stage {
        Stage::Consume
    }

    async fn run(self, shutdown: Shutdown) -> Result<(), BoxError> {
        while let Some(unknown) = shutdown.unless_draining(self.engine.unknown()).await {
            match unknown {
                Ok(None) => break,
                Ok(Some(unknown)) => return Err(unknown.into()),
                Err(error) => {
                    tracing::warn!(%error, "the store of the sagas does not answer");
                    shutdown.unless_draining(tokio::time::sleep(CHECK_AGAIN)).await;
                }
            }
        }
        let replies = self.replies.run(shutdown.clone());
        tokio::try_join!(biased; replies, self.timers.run(shutdown))?;
        Ok(())
    }
}

impl<S: OutboxStore> fmt::Debug for Coordinator<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Takes replies in.
struct Replies<S: OutboxStore>(Arc<Engine<S>>);

impl<S: SagaStore + OutboxStore + InboxStore> Handler for Replies<S> {
    fn handles(&self, kind: &str) -> bool {
        kind == wire::REPLY || kind == wish::KIND
    }

    fn handle<'a>(&'a self, incoming: &'a Incoming) -> BoxFuture<'a, Handled> {
        Box::pin(self.alone(incoming))
    }

    fn handle_batch<'a>(&'a self, batch: &'a [Incoming]) -> BoxFuture<'a, Vec<Handled>> {
        Box::pin(batch::handle(self, batch))
    }
}

impl<S: SagaStore + OutboxStore + InboxStore> Batches for Replies<S> {
    async fn together(&self, batch: &[&Incoming]) -> Option<Vec<Handled>> {
        if batch.iter().any(|incoming| incoming.message.kind == wish::KIND) {
            return None;
        }
        self.0.replies(batch, &[]).await.ok()
    }

    async fn alone(&self, incoming: &Incoming) -> Handled {
        if incoming.message.kind != wish::KIND {
            return self.0.reply(incoming).await;
        }
        let (wish, saga) = Wish::read(&incoming.message)?;
        let turned = self.0.advance(saga, &wish.input()).await?;
        let obeyed = turned.is_some_and(|turned| turned.accepted);
        tracing::info!(%saga, wish = wish.name(), obeyed, "an operator intervened");
        Ok(())
    }
}
