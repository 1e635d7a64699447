//! Work that the coordinator does itself, in the transaction that advances the saga.

use antiphon_core::BoxFuture;
use antiphon_outbox::{Store, Tx};

use crate::Rejection;

/// A local step, the undo of one, or a closing handler. Async functions with these two arguments
/// are such work:
///
/// ```ignore
/// async fn confirm(order: &mut PlaceOrder, tx: &mut Tx<Sqlite>) -> Result<(), Rejection> {
///     rows::set_status(tx, &order.order_id, Status::Confirmed).await?;
///     Ok(())
/// }
/// ```
pub trait LocalWork<D, S: Store>: Send + Sync + 'static {
    /// Does the work. What it writes through `tx` and changes in `data` is committed together with
    /// the saga's progress, or not at all; it may run again when the commit fails.
    ///
    /// # Errors
    /// See [`Rejection`]. An undo and a closing handler are tried again whatever the rejection.
    fn run(
        &self,
        data: &mut D,
        tx: &mut Tx<S>,
    ) -> impl Future<Output = Result<(), Rejection>> + Send;
}

/// What async functions of two references are: says that their futures may move between threads,
/// whatever the lifetime.
pub trait AsyncWork<'a, D: 'a, S: Store>: Send + Sync {
    /// What the function returns.
    type Future: Future<Output = Result<(), Rejection>> + Send + 'a;

    /// Calls the function.
    fn call(&self, data: &'a mut D, tx: &'a mut Tx<S>) -> Self::Future;
}

impl<'a, D: 'a, S: Store, F, Fut> AsyncWork<'a, D, S> for F
where
    F: Fn(&'a mut D, &'a mut Tx<S>) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), Rejection>> + Send + 'a,
{
    type Future = Fut;

    fn call(&self, data: &'a mut D, tx: &'a mut Tx<S>) -> Fut {
        self(data, tx)
    }
}

impl<D, S, F> LocalWork<D, S> for F
where
    D: Send + 'static,
    S: Store,
    F: for<'a> AsyncWork<'a, D, S> + 'static,
{
    async fn run(&self, data: &mut D, tx: &mut Tx<S>) -> Result<(), Rejection> {
        self.call(data, tx).await
    }
}

/// [`LocalWork`] with a boxed future, so that it can be kept in a list.
pub(crate) trait BoxedWork<D, S: Store>: Send + Sync {
    fn run<'a>(
        &'a self,
        data: &'a mut D,
        tx: &'a mut Tx<S>,
    ) -> BoxFuture<'a, Result<(), Rejection>>;
}

impl<D: Send + 'static, S: Store, W: LocalWork<D, S>> BoxedWork<D, S> for W {
    fn run<'a>(
        &'a self,
        data: &'a mut D,
        tx: &'a mut Tx<S>,
    ) -> BoxFuture<'a, Result<(), Rejection>> {
        Box::pin(LocalWork::run(self, data, tx))
    }
}
