//! Work as a closure that may run again when the database was busy.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use antiphon_core::retry::Decision;
use antiphon_core::{BoxFuture, Retry, RetryPolicy};

use crate::port::{CommitError, OutboxStore, Store};
use crate::tx::{Database, Tx};

/// How often and how fast work is done again that met other work.
pub(crate) const BUSY: RetryPolicy =
    RetryPolicy::exponential(Duration::from_millis(5), Duration::from_millis(200)).attempts(6);

/// The transaction as a closure gets it: a `&mut Tx` that also tells the compiler that what the
/// closure borrows (`'env`) lives longer than the transaction (`'t`).
pub struct InTx<'t, 'env: 't, S: Store> {
    tx: &'t mut Tx<S>,
    borrows: PhantomData<&'t &'env ()>,
}

impl<'t, S: Store> InTx<'t, '_, S> {
    pub(crate) fn new(tx: &'t mut Tx<S>) -> Self {
        Self { tx, borrows: PhantomData }
    }
}

impl<S: Store> Deref for InTx<'_, '_, S> {
    type Target = Tx<S>;
    fn deref(&self) -> &Tx<S> {
        self.tx
    }
}

impl<S: Store> DerefMut for InTx<'_, '_, S> {
    fn deref_mut(&mut self) -> &mut Tx<S> {
        self.tx
    }
}

impl<S: Store> fmt::Debug for InTx<'_, '_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InTx")
    }
}

impl<S: OutboxStore> Database<S> {
    /// Does `work` in a transaction and commits it. When the database says that other work was in
    /// the way, of the commit or of a statement for which `work` fails, all of it is done again, a
    /// few times: `work` must have no effects but through `tx`.
    ///
    /// The plain form, for work that need not be repeated, is [`begin`](Self::begin) and
    /// [`Tx::commit`].
    ///
    /// ```
    /// # use antiphon_outbox::{CommitError, Database, OutboxStore, StoreError};
    /// # async fn take<S: OutboxStore>(_: &mut antiphon_outbox::Tx<S>, _: &str) -> Result<u32, CommitError> { Ok(1) }
    /// # async fn example<S: OutboxStore>(db: Database<S>, sku: &str) -> Result<u32, CommitError> {
    /// let left = db
    ///     .transact(|mut tx| Box::pin(async move { take(&mut tx, sku).await }))
    ///     .await?;
    /// # Ok(left) }
    /// ```
    ///
    /// # Errors
    /// What `work` returns; or why the transaction could not be begun or committed.
    pub async fn transact<'env, T, E>(
        &self,
        mut work: impl for<'t> FnMut(InTx<'t, 'env, S>) -> BoxFuture<'t, Result<T, E>> + Send,
    ) -> Result<T, E>
    where
        E: From<CommitError>,
    {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let refused = match self.begin().await {
                Ok(mut tx) => match work(InTx::new(&mut tx)).await {
                    Ok(done) => match tx.commit().await {
                        Ok(()) => return Ok(done),
                        Err(error) => error,
                    },
                    Err(error) => {
                        pause_if_in_the_way(tx, attempt, error).await?;
                        continue;
                    }
                },
                Err(error) => CommitError::RolledBack(error),
            };
            pause_if_busy(refused, attempt).await?;
        }
    }
}

/// Undoes work that failed, and waits before another attempt where other work was in its way.
pub(crate) async fn pause_if_in_the_way<S: OutboxStore, E>(
    mut tx: Tx<S>,
    attempt: u32,
    error: E,
) -> Result<(), E> {
    let store = tx.database().store().clone();
    if let Decision::RetryAfter(wait) = BUSY.decide(attempt, Retry::Later, fastrand::f64())
        && store.met_other_work(tx.connection()).await
    {
        drop(tx);
        tracing::debug!(attempt, "other work was in the way; the transaction is done again");
        tokio::time::sleep(wait).await;
        return Ok(());
    }
    Err(error)
}

/// Waits before another attempt, where that makes sense.
pub(crate) async fn pause_if_busy(error: CommitError, attempt: u32) -> Result<(), CommitError> {
    if error.is_busy()
        && let Decision::RetryAfter(wait) = BUSY.decide(attempt, Retry::Later, fastrand::f64())
    {
        tracing::debug!(%error, attempt, "the transaction is done again");
        tokio::time::sleep(wait).await;
        return Ok(());
    }
    Err(error)
}
