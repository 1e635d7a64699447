//! The other side: a service that does and undoes steps of other services' sagas.
//!
//! A command passes the inbox (the same message twice) and the barrier (the same try of the same
//! step twice, an undo before its action, an action after its undo), does its work and stores its
//! answer, all in one transaction with the answer's message.

mod commands;
mod ticket;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{BoxError, BoxFuture, Component, RetryPolicy, Shutdown, Stage};
use antiphon_messaging::{Command, Consumer, ConsumerError, Fail, Messaging, Topology, Worker};
use antiphon_outbox::{Database, InboxStore, OutboxStore, Store, StoreError, Tx};
use buffa::Message as Protobuf;
use bytes::Bytes;

use crate::port::BarrierStore;
use crate::{Rejection, batch};
use commands::Commands;

pub use crate::wire::Ticket;

/// How often old commands are forgotten.
const HOUSEKEEPING: Duration = Duration::from_secs(3_600);
/// How many of them at a time.
const FORGET_MAX: u32 = 10_000;
/// How many commands are done together where that helps.
const BATCH_MAX: usize = 16;

/// Does what a command of a saga asks for.
pub trait Participate<C: Command, S: Store>: Send + Sync + 'static {
    /// What it answers.
    type Reply: Protobuf + 'static;

    /// Does the work through `tx`, in one transaction with the answer. It is called once per step
    /// and side of a saga; again only after it failed.
    ///
    /// # Errors
    /// See [`Rejection`]. A refused action is never asked for again; what it wrote is rolled back.
    fn handle(
        &self,
        command: C,
        tx: &mut Tx<S>,
    ) -> impl Future<Output = Result<Self::Reply, Rejection>> + Send;
}

/// Does what a command of a saga asks for, and answers in a later transaction: where the work is
/// outside of the database and must not run inside a transaction.
pub trait ParticipateLater<C: Command, S: Store>: Send + Sync + 'static {
    /// Takes the work on: writes down what is to be done, and the ticket with it.
    ///
    /// # Errors
    /// See [`Rejection`].
    fn handle(
        &self,
        command: C,
        ticket: Ticket,
        tx: &mut Tx<S>,
    ) -> impl Future<Output = Result<(), Rejection>> + Send;
}

/// A group that does the commands of sagas that are sent to one service.
///
/// ```ignore
/// db.participant("inventory.commands")
///     .on::<Reserve>(inventory.clone())
///     .on::<Release>(inventory)
///     .build(&messaging)?
/// ```
#[must_use = "a participant does nothing until it is built and run"]
pub struct Participant<S: OutboxStore> {
    database: Database<S>,
    group: String,
    topics: BTreeSet<&'static str>,
    commands: BTreeMap<&'static str, Arc<dyn Perform<S>>>,
    concurrency: Option<usize>,
    retry: RetryPolicy,
}

/// Makes participants of a service's database.
pub trait Participants<S: OutboxStore> {
    /// A participant that reads its commands as `group`.
    fn participant(&self, group: impl Into<String>) -> Participant<S>;
}

impl<S: OutboxStore> Participants<S> for Database<S> {
    fn participant(&self, group: impl Into<String>) -> Participant<S> {
        Participant {
            database: self.clone(),
            group: group.into(),
            topics: BTreeSet::new(),
            commands: BTreeMap::new(),
            concurrency: None,
            retry: RetryPolicy::default(),
        }
    }
}

impl<S: BarrierStore + OutboxStore + InboxStore> Participant<S> {
    /// Does commands of one type.
    pub fn on<C: Command>(self, participate: impl Participate<C, S>) -> Self {
        self.add::<C>(Now { participate, command: PhantomData })
    }

    /// Takes on commands of one type, to answer later.
    pub fn on_later<C: Command>(self, participate: impl ParticipateLater<C, S>) -> Self {
        self.add::<C>(Later { participate, command: PhantomData })
    }

    fn add<C: Command>(mut self, perform: impl Perform<S>) -> Self {
        self.topics.insert(C::DESTINATION);
        self.commands.insert(C::KIND, Arc::new(perform));
        self
    }

    /// How many commands run side by side. As suits the database unless set: 8, each in a transaction
    /// of its own, or 2 batches where one transaction writes at a time (SQLite).
    pub fn concurrency(mut self, runs_max: usize) -> Self {
        self.concurrency = Some(runs_max);
        self
    }

    /// How often and how fast a command that failed is tried again here. The saga asks again by
    /// itself, and the command then comes as another message.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Makes the component that does the commands, one at a time and in order for each key.
    ///
    /// # Errors
    /// No command was added, or the broker cannot do what is needed.
    pub fn build(self, messaging: &Messaging) -> Result<Participation<S>, ConsumerError> {
        let consumer = Consumer::group(&self.group).ordered().retry(self.retry);
        let together = self.database.store().one_writer();
        let mut consumer = batch::arrange(consumer, together, self.concurrency, BATCH_MAX);
        for topic in &self.topics {
            consumer = consumer.topic(*topic);
        }
        let name = format!("participant {}", self.group);
        let commands = Commands {
            database: self.database.clone(),
            group: self.group,
            commands: self.commands,
        };
        let worker = consumer.handler(commands).build(messaging)?;
        Ok(Participation { name, worker, database: self.database })
    }
}

/// A participant at work. Made by [`Participant::build`], run by the application.
#[must_use = "a participant does nothing until it is run"]
pub struct Participation<S> {
    name: String,
    worker: Worker,
    database: Database<S>,
}

impl<S> Participation<S> {
    /// The topics and the group of the commands.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        self.worker.topology()
    }
}

/// Forgets commands of sagas that are too old to come again.
async fn keep_house<S: BarrierStore + OutboxStore>(
    database: &Database<S>,
) -> Result<(), StoreError> {
    let store = database.store();
    // A saga is older than its commands, so none of what is forgotten can pass again. The margin is
    // for clocks that differ.
    let before = store.now() - commands::RETENTION - HOUSEKEEPING;
    store.forget_passed(before, FORGET_MAX).await.map(drop)
}

impl<S: BarrierStore + OutboxStore> Component for Participation<S> {
    fn name(&self) -> &str {
        &self.name
    }

    fn stage(&self) -> Stage {
        Stage::Consume
    }

    async fn run(self, shutdown: Shutdown) -> Result<(), BoxError> {
        let Self { worker, database, .. } = self;
        let mut work = pin!(worker.run(shutdown));
        loop {
            tokio::select! {
                biased;
                ended = &mut work => return ended,
                () = tokio::time::sleep(HOUSEKEEPING) => {
                    if let Err(error) = keep_house(&database).await {
                        tracing::warn!(%error, "old commands of sagas were not forgotten");
                    }
                }
            }
        }
    }
}

impl<S> fmt::Debug for Participation<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Participation").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<S: OutboxStore> fmt::Debug for Participant<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Participant")
            .field("group", &self.group)
            .field("commands", &self.commands.keys())
            .finish_non_exhaustive()
    }
}

/// A [`Participate`] or [`ParticipateLater`] without its command type. Gives the encoded reply, or
/// `None` when it comes later.
pub(crate) trait Perform<S: OutboxStore>: Send + Sync + 'static {
    fn perform<'a>(
        &'a self,
        body: &'a [u8],
        ticket: &'a Ticket,
        tx: &'a mut Tx<S>,
    ) -> BoxFuture<'a, Result<Option<Bytes>, Rejection>>;
}

struct Now<C, P> {
    participate: P,
    command: PhantomData<fn(C)>,
}

struct Later<C, P> {
    participate: P,
    command: PhantomData<fn(C)>,
}

impl<C: Command, S: OutboxStore, P: Participate<C, S>> Perform<S> for Now<C, P> {
    fn perform<'a>(
        &'a self,
        body: &'a [u8],
        _: &'a Ticket,
        tx: &'a mut Tx<S>,
    ) -> BoxFuture<'a, Result<Option<Bytes>, Rejection>> {
        Box::pin(async move {
            let command = decode::<C>(body)?;
            let reply = self.participate.handle(command, tx).await?;
            Ok(Some(reply.encode_to_vec().into()))
        })
    }
}

impl<C: Command, S: OutboxStore, P: ParticipateLater<C, S>> Perform<S> for Later<C, P> {
    fn perform<'a>(
        &'a self,
        body: &'a [u8],
        ticket: &'a Ticket,
        tx: &'a mut Tx<S>,
    ) -> BoxFuture<'a, Result<Option<Bytes>, Rejection>> {
        Box::pin(async move {
            let command = decode::<C>(body)?;
            self.participate.handle(command, ticket.clone(), tx).await?;
            Ok(None)
        })
    }
}

fn decode<C: Command>(body: &[u8]) -> Result<C, Fail> {
    C::decode_from_slice(body).map_err(|error| {
        Fail::permanent(format!("the body is not a {}: {error}", C::KIND)).with_code("decode")
    })
}
