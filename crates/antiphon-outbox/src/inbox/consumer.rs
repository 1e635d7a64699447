//! The handler of a group with a database: inbox first, then the user's handler, then the commit,
//! and only then the acknowledgement.

use std::collections::HashMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{BoxFuture, RetryPolicy};
use antiphon_messaging::{Command, Consumer, Event, Fail, Handler, Incoming, Middleware, Start};
use futures_util::FutureExt;
use tokio::time::{Instant, timeout};

use super::handle::{Handle, Route, Typed};
use crate::port::{CommitError, InboxEntry, InboxStore, OutboxStore, Store, StoreError};
use crate::tx::Database;

/// Runs the handlers of one group in transactions.
struct Transactional<S: Store> {
    database: Database<S>,
    group: Arc<str>,
    routes: HashMap<&'static str, Arc<dyn Route<S>>>,
}

impl<S: OutboxStore + InboxStore> Transactional<S> {
    fn route(&self, incoming: &Incoming) -> Result<&dyn Route<S>, Fail> {
        let kind = incoming.message.kind.as_str();
        self.routes.get(kind).map(|route| &**route).ok_or_else(|| {
            Fail::permanent(format!("the group {} has no handler for {kind}", self.group))
        })
    }

    /// One message in one transaction.
    async fn single(&self, incoming: &Incoming) -> Result<(), Fail> {
        let mut tx = self.database.begin().await.map_err(Fail::defer)?;
        let entries = tx.enter(&self.group, &[&incoming.message]).await.map_err(Fail::defer)?;
        match entries.first() {
            Some(InboxEntry::New) => {
                self.route(incoming)?.handle(incoming, &mut tx).await?;
                tx.commit().await.map_err(not_committed)
            }
            Some(InboxEntry::Duplicate) => {
                // The commit only counts it; what matters is committed already.
                if let Err(error) = tx.commit().await {
                    tracing::debug!(%error, "a duplicate was not counted");
                }
                Ok(())
            }
            Some(InboxEntry::BeyondHorizon) | None => Err(beyond_horizon(incoming)),
        }
    }

    /// Several messages in one transaction, all or none: `None` means that nothing happened and
    /// each must be handled alone.
    async fn together(&self, batch: &[&Incoming]) -> Option<Vec<Result<(), Fail>>> {
        let defer_all =
            |error: String| Some(batch.iter().map(|_| Err(Fail::defer(error.clone()))).collect());
        let mut tx = match self.database.begin().await {
            Ok(tx) => tx,
            Err(error) => return defer_all(error.to_string()),
        };
        let messages: Vec<_> = batch.iter().map(|incoming| &*incoming.message).collect();
        let entries = match tx.enter(&self.group, &messages).await {
            Ok(entries) => entries,
            Err(error) => return defer_all(error.to_string()),
        };
        let mut outcomes = Vec::with_capacity(batch.len());
        for (incoming, entry) in batch.iter().zip(entries) {
            outcomes.push(match entry {
                InboxEntry::New => {
                    let work = self.route(incoming).ok()?.handle(incoming, &mut tx);
                    let work =
                        incoming.context.clone().scope(AssertUnwindSafe(work).catch_unwind());
                    work.await.ok()?.ok()?;
                    Ok(())
                }
                InboxEntry::Duplicate => Ok(()),
                InboxEntry::BeyondHorizon => Err(beyond_horizon(incoming)),
            });
        }
        match tx.commit().await {
            Ok(()) => Some(outcomes),
            Err(CommitError::RolledBack(_)) => None,
            Err(error @ CommitError::Unknown(_)) => defer_all(error.to_string()),
        }
    }

    /// All together if that works, else each alone. The time of the batch is shared so that one
    /// that hangs costs the others neither an attempt nor their turn.
    async fn batch(&self, batch: &[Incoming]) -> Vec<Result<(), Fail>> {
        let now = Instant::now();
        let end = batch.iter().filter_map(|incoming| incoming.context.deadline()).max();
        let time = end.map_or(Duration::MAX / 2, |end| end.saturating_duration_since(now));
        // What failed before is handled alone: its transaction must not take others down.
        let fresh: Vec<usize> = (0..batch.len()).filter(|i| batch[*i].attempt == 1).collect();
        let members: Vec<_> = fresh.iter().map(|i| &batch[*i]).collect();
        let mut outcomes: Vec<Option<Result<(), Fail>>> = batch.iter().map(|_| None).collect();
        if members.len() > 1
            && let Ok(Some(answers)) = timeout(time / 2, self.together(&members)).await
        {
            for (index, answer) in fresh.into_iter().zip(answers) {
                outcomes[index] = Some(answer);
            }
        }
        let mut answers = Vec::with_capacity(batch.len());
        for (incoming, outcome) in batch.iter().zip(outcomes) {
            let left = (time - time / 20).saturating_sub(now.elapsed());
            answers.push(match outcome {
                Some(outcome) => outcome,
                None if left.is_zero() => Err(Fail::defer("no time was left in its batch")),
                None => match timeout(left, self.alone(incoming)).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(Fail::retry(format!("the handler took longer than {left:?}"))),
                },
            });
        }
        answers
    }

    /// One message of a batch: a panic is its own failure, not that of the others.
    async fn alone(&self, incoming: &Incoming) -> Result<(), Fail> {
        let work = AssertUnwindSafe(self.single(incoming)).catch_unwind();
        match incoming.context.clone().scope(work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Fail::retry("the handler panicked")),
        }
    }
}

impl<S: OutboxStore + InboxStore> Handler for Transactional<S> {
    fn handles(&self, kind: &str) -> bool {
        self.routes.contains_key(kind)
    }

    fn handle<'a>(&'a self, incoming: &'a Incoming) -> BoxFuture<'a, Result<(), Fail>> {
        Box::pin(self.single(incoming))
    }

    fn handle_batch<'a>(&'a self, batch: &'a [Incoming]) -> BoxFuture<'a, Vec<Result<(), Fail>>> {
        Box::pin(self.batch(batch))
    }
}

/// Whether the message comes again with or without counting it.
fn not_committed(error: CommitError) -> Fail {
    match error {
        // Redelivery and the inbox find out.
        CommitError::Unknown(_) | CommitError::RolledBack(StoreError::Busy(_)) => {
            Fail::defer(error)
        }
        // It may be the message's own fault (what it emits is too large, a deferred constraint).
        CommitError::RolledBack(_) => Fail::retry(error),
    }
}

fn beyond_horizon(incoming: &Incoming) -> Fail {
    Fail::permanent(format!(
        "message {} is older than what the inbox remembers: whether it was handled is not known",
        incoming.message.id
    ))
    .with_code("dedup-horizon")
}

impl<S: Store> fmt::Debug for Transactional<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transactional")
            .field("group", &self.group)
            .field("kinds", &self.routes.keys())
            .finish_non_exhaustive()
    }
}

/// A group whose handlers work in transactions of one database. Becomes a [`Consumer`].
#[must_use = "a consumer does nothing until it is built and run"]
pub struct DatabaseConsumer<S: Store> {
    consumer: Consumer,
    handlers: Transactional<S>,
}

impl<S: OutboxStore + InboxStore> Database<S> {
    /// A group whose handlers work in transactions of this database.
    pub fn group(&self, name: &str) -> DatabaseConsumer<S> {
        DatabaseConsumer {
            consumer: Consumer::group(name),
            handlers: Transactional {
                database: self.clone(),
                group: name.into(),
                routes: HashMap::new(),
            },
        }
    }
}

impl<S: OutboxStore + InboxStore> DatabaseConsumer<S> {
    /// Handles events of one type, from their topic.
    pub fn on<E: Event>(self, handle: impl Handle<E, S>) -> Self {
        self.route(E::TOPIC, E::KIND, Typed::<E, _>::new(handle))
    }

    /// Handles commands of one type, from their destination.
    pub fn command<C: Command>(self, handle: impl Handle<C, S>) -> Self {
        self.route(C::DESTINATION, C::KIND, Typed::<C, _>::new(handle))
    }

    fn route(mut self, topic: &str, kind: &'static str, route: impl Route<S> + 'static) -> Self {
        self.handlers.routes.insert(kind, Arc::new(route));
        self.map(|consumer| consumer.topic(topic))
    }

    fn map(mut self, change: impl FnOnce(Consumer) -> Consumer) -> Self {
        self.consumer = change(self.consumer);
        self
    }

    /// One message of a key at a time, in the order in which they were sent.
    pub fn ordered(self) -> Self {
        self.map(Consumer::ordered)
    }

    /// How many transactions may run at a time.
    pub fn concurrency(self, runs_max: usize) -> Self {
        self.map(|consumer| consumer.concurrency(runs_max))
    }

    /// How many messages may share a transaction, when so many are ready. One unless set. When one
    /// of them fails, the transaction is rolled back and each is handled alone. Where many transactions
    /// write at a time (PostgreSQL, MySQL), it is for handlers that lock rows of their key alone: those
    /// of others would be locked in the order of the messages, and two batches wait for each other.
    pub fn batch(self, messages_max: usize) -> Self {
        self.map(|consumer| consumer.batch(messages_max))
    }

    /// How many messages may be held that are not settled.
    pub fn credits(self, messages_max: usize) -> Self {
        self.map(|consumer| consumer.credits(messages_max))
    }

    /// How often and how fast to try again.
    pub fn retry(self, policy: RetryPolicy) -> Self {
        self.map(|consumer| consumer.retry(policy))
    }

    /// How long one transaction may take, or one batch of them; then it is rolled back, and counts
    /// as failed.
    pub fn timeout(self, limit: Duration) -> Self {
        self.map(|consumer| consumer.timeout(limit))
    }

    /// Puts something around the handlers, inside what was added before.
    pub fn middleware(self, middleware: impl Middleware) -> Self {
        self.map(|consumer| consumer.middleware(middleware))
    }

    /// Where the group begins when it is new.
    pub fn start(self, start: Start) -> Self {
        self.map(|consumer| consumer.start(start))
    }
}

impl<S: OutboxStore + InboxStore> From<DatabaseConsumer<S>> for Consumer {
    fn from(group: DatabaseConsumer<S>) -> Self {
        group.consumer.handler(group.handlers)
    }
}

impl<S: Store> fmt::Debug for DatabaseConsumer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseConsumer")
            .field("consumer", &self.consumer)
            .field("handlers", &self.handlers)
            .finish()
    }
}
