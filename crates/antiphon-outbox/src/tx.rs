//! The transaction that user code works in, and the handle that opens it.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Context, MessageId, Timestamp};
use antiphon_messaging::{Command, Event, Message, Payload};
use tokio::sync::watch;

use crate::port::{CommitError, InboxEntry, InboxStore, OutboxStore, Store, StoreError};

/// A service's own database: business rows, outbox, inbox, sagas. Cheap to clone.
#[derive(Debug)]
pub struct Database<S> {
    store: S,
    /// The service, which becomes the `source` of its messages.
    service: Arc<str>,
    committed: Arc<watch::Sender<()>>,
}

impl<S: Clone> Clone for Database<S> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            service: Arc::clone(&self.service),
            committed: Arc::clone(&self.committed),
        }
    }
}

impl<S: OutboxStore> Database<S> {
    /// The database of `service`, kept by `store`.
    #[must_use]
    pub fn new(service: &str, store: S) -> Self {
        Self { store, service: service.into(), committed: Arc::new(watch::Sender::new(())) }
    }

    /// The adapter underneath.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The service that owns it.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The time, by the store's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.store.now()
    }

    /// Changes after each commit with messages in this process: what wakes the relay.
    #[must_use]
    pub fn committed(&self) -> watch::Receiver<()> {
        self.committed.subscribe()
    }

    /// Opens a transaction. Dropping it rolls back.
    ///
    /// # Errors
    /// The store is busy or fails.
    pub async fn begin(&self) -> Result<Tx<S>, StoreError> {
        let connection = self.store.begin().await?;
        Ok(Tx {
            database: self.clone(),
            connection,
            messages: Vec::new(),
            endings: Endings::default(),
        })
    }
}

/// One transaction: business rows through the connection it derefs to, messages through
/// [`emit`](Self::emit) and [`send`](Self::send).
///
/// Messages leave after the commit and never without it. They are buffered here and written as the
/// last statement, so that messages of one key are numbered in the order of their commits.
#[derive(Debug)]
pub struct Tx<S: Store> {
    database: Database<S>,
    connection: S::Connection,
    messages: Vec<Message>,
    /// After the connection, which rolls back when it is dropped.
    endings: Endings,
}

/// What is done when the transaction is over, in whatever way: when this is dropped.
#[derive(Default)]
struct Endings(Vec<Box<dyn FnOnce() + Send + Sync>>);

impl Drop for Endings {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|ending| ending());
    }
}

impl fmt::Debug for Endings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.len())
    }
}

impl<S: OutboxStore> Tx<S> {
    /// Says what happened, once this transaction is committed.
    pub fn emit<E: Event>(&mut self, event: &E) -> MessageId {
        let message = self.message(E::TOPIC, E::key(event), event);
        self.push(message)
    }

    /// Says it later: not before `after` has passed.
    pub fn emit_after<E: Event>(&mut self, after: Duration, event: &E) -> MessageId {
        let message = self.message(E::TOPIC, E::key(event), event);
        let now = message.time;
        self.push(message.delayed(now, after))
    }

    /// Asks another service for something, once this transaction is committed. It carries no
    /// deadline: what is committed is to be done, however long the caller of this call waits.
    pub fn send<C: Command>(&mut self, command: &C) -> MessageId {
        let message = self.message(C::DESTINATION, C::key(command), command);
        self.push(message)
    }

    /// Adds a message that is made already; for the framework's own messages.
    pub fn push(&mut self, message: Message) -> MessageId {
        let id = message.id;
        self.messages.push(message);
        id
    }

    /// A message of this service, made now, in the current context.
    pub fn message<P: Payload>(&self, topic: &str, key: String, payload: &P) -> Message {
        let time = self.database.store.now();
        let mut message = Message {
            id: MessageId::new(time),
            topic: topic.to_owned(),
            kind: P::KIND.to_owned(),
            source: self.database.service.to_string(),
            key,
            time,
            not_before: None,
            attributes: std::collections::BTreeMap::new(),
            body: payload.encode_to_vec().into(),
        };
        Context::with_current(|context| match context {
            Some(context) => message.inject(context),
            None => message.inject(&Context::root()),
        });
        message
    }

    /// Does something when this transaction is over: after the commit and before this process hears of
    /// its messages, or after it was rolled back. For what must not be left out when something was
    /// committed and does no harm when nothing was, such as forgetting a cached value or waking
    /// whoever looks at the rows. It must not block.
    ///
    /// It is also done when the outcome of the commit is unknown, and when the future of the commit is
    /// dropped, which may be before the commit takes effect. A process that dies does not do it: what
    /// must survive that is a message.
    pub fn when_over(&mut self, ending: impl FnOnce() + Send + Sync + 'static) {
        self.endings.0.push(Box::new(ending));
    }

    /// Notes that `consumer` handles `messages`; the first statement of the transaction that does.
    /// Answers for each, in the order of the input.
    ///
    /// # Errors
    /// The store fails; the transaction can only be dropped.
    pub async fn enter(
        &mut self,
        consumer: &str,
        messages: &[&Message],
    ) -> Result<Vec<InboxEntry>, StoreError>
    where
        S: InboxStore,
    {
        self.database.store.enter(&mut self.connection, consumer, messages).await
    }

    /// The database it belongs to.
    #[must_use]
    pub fn database(&self) -> &Database<S> {
        &self.database
    }

    /// What statements run on: the database driver's own connection.
    pub fn sql(&mut self) -> &mut <S::Connection as Deref>::Target
    where
        S::Connection: DerefMut,
    {
        &mut self.connection
    }

    /// The open transaction underneath.
    pub fn connection(&mut self) -> &mut S::Connection {
        &mut self.connection
    }

    /// Writes the messages and commits.
    ///
    /// # Errors
    /// See [`CommitError`]. On [`CommitError::Unknown`] the work may have been done.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the outcome unknown.
    pub async fn commit(mut self) -> Result<(), CommitError> {
        let store = &self.database.store;
        if !self.messages.is_empty() {
            store
                .append(&mut self.connection, &self.messages)
                .await
                .map_err(CommitError::RolledBack)?;
        }
        store.commit(self.connection).await?;
        drop(self.endings);
        if !self.messages.is_empty() {
            self.database.committed.send_replace(());
        }
        Ok(())
    }
}

impl<S: Store> Deref for Tx<S> {
    type Target = S::Connection;
    fn deref(&self) -> &S::Connection {
        &self.connection
    }
}

impl<S: Store> DerefMut for Tx<S> {
    fn deref_mut(&mut self) -> &mut S::Connection {
        &mut self.connection
    }
}
