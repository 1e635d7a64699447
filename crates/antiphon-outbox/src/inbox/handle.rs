//! What users write to handle a message in a transaction.

use std::fmt;
use std::marker::PhantomData;

use antiphon_core::BoxFuture;
use antiphon_messaging::{Fail, Incoming, Payload};

use crate::port::Store;
use crate::tx::Tx;

/// Handles events or commands of one type, in a transaction of the service's own database.
///
/// What it does through `tx` takes effect once, however often the message comes. What it does
/// elsewhere (calls to other services) may be done again; give such a call the message's id as its
/// idempotency key.
///
/// An async function becomes one by [`handle_fn`].
pub trait Handle<P: Payload, S: Store>: Send + Sync + 'static {
    /// Handles it. On `Ok` the transaction is committed and then the message acknowledged; on
    /// `Err` it is rolled back, and the consumer's retry policy decides.
    fn handle(&self, payload: P, tx: &mut Tx<S>) -> impl Future<Output = Result<(), Fail>> + Send;
}

/// An async function of a payload and a transaction as a [`Handle`].
///
/// ```
/// # use antiphon_messaging::{Event, Fail};
/// # use antiphon_outbox::{Database, InboxStore, OutboxStore, Tx, handle_fn};
/// async fn award<S: OutboxStore, E: Event>(order: E, tx: &mut Tx<S>) -> Result<(), Fail> {
///     tx.emit(&order);
///     Ok(())
/// }
///
/// # fn consumer<S: OutboxStore + InboxStore, OrderConfirmed: Event>(db: Database<S>) {
/// let consumer = db.group("points.orders").on::<OrderConfirmed>(handle_fn(award));
/// # let _ = consumer; }
/// ```
pub fn handle_fn<F>(function: F) -> HandleFn<F> {
    HandleFn(function)
}

/// What [`handle_fn`] makes.
#[derive(Clone, Copy)]
pub struct HandleFn<F>(F);

impl<F> fmt::Debug for HandleFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandleFn")
    }
}

/// An async function of a payload and a transaction. Never implemented by hand.
pub trait TxFn<'t, P, S: Store>: Send + Sync + 'static {
    /// What the function returns.
    type Done: Future<Output = Result<(), Fail>> + Send + 't;
    /// Calls it.
    fn call(&self, payload: P, tx: &'t mut Tx<S>) -> Self::Done;
}

impl<'t, P, S, F, Done> TxFn<'t, P, S> for F
where
    S: Store,
    F: Fn(P, &'t mut Tx<S>) -> Done + Send + Sync + 'static,
    Done: Future<Output = Result<(), Fail>> + Send + 't,
{
    type Done = Done;
    fn call(&self, payload: P, tx: &'t mut Tx<S>) -> Done {
        self(payload, tx)
    }
}

impl<P, S, F> Handle<P, S> for HandleFn<F>
where
    P: Payload,
    S: Store,
    F: for<'t> TxFn<'t, P, S>,
{
    fn handle(&self, payload: P, tx: &mut Tx<S>) -> impl Future<Output = Result<(), Fail>> + Send {
        self.0.call(payload, tx)
    }
}

/// A [`Handle`] of any payload.
pub(super) trait Route<S: Store>: Send + Sync {
    fn handle<'a>(
        &'a self,
        incoming: &'a Incoming,
        tx: &'a mut Tx<S>,
    ) -> BoxFuture<'a, Result<(), Fail>>;
}

pub(super) struct Typed<P, H> {
    handle: H,
    payload: PhantomData<fn(P)>,
}

impl<P, H> Typed<P, H> {
    pub(super) fn new(handle: H) -> Self {
        Self { handle, payload: PhantomData }
    }
}

impl<P: Payload, S: Store, H: Handle<P, S>> Route<S> for Typed<P, H> {
    fn handle<'a>(
        &'a self,
        incoming: &'a Incoming,
        tx: &'a mut Tx<S>,
    ) -> BoxFuture<'a, Result<(), Fail>> {
        Box::pin(async move { self.handle.handle(incoming.decode::<P>()?, tx).await })
    }
}
