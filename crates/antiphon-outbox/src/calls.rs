//! Calls that may come twice and must take effect once.
//!
//! The caller names its call with an idempotency key, which is in the [`Context`]. The answer is
//! stored in the transaction that does the work, under the method and the key; the same call again
//! gets the stored answer. What fails stores nothing, so a caller may try again with the same key.

mod hash;

use std::fmt;
use std::ops::{Deref, DerefMut};

use antiphon_core::{BoxFuture, Code, Context, Status};
use buffa::Message as Protobuf;

pub use hash::RequestHash;

use crate::port::{CallStore, CommitError, OutboxStore, Store, StoredCall};
use crate::transact::{InTx, pause_if_busy, pause_if_in_the_way};
use crate::tx::{Database, Tx};

/// The longest idempotency key that is taken, in bytes.
const KEY_BYTES_MAX: usize = 255;
/// The domain of the reasons given here.
const DOMAIN: &str = "antiphon";

/// What [`Database::begin_call`] finds.
pub enum Call<S: Store, A> {
    /// The call was made before; this was the answer.
    Answered(A),
    /// It is new: do the work and commit it with the answer.
    New(CallTx<S>),
}

/// The transaction of a call that is made for the first time.
pub struct CallTx<S: Store> {
    tx: Tx<S>,
    /// Method, key and hash of the request; `None` for a call without a key.
    place: Option<(String, String, u64)>,
}

impl<S: OutboxStore + CallStore> Database<S> {
    /// Begins the work of a call in the current [`Context`], unless its idempotency key says that
    /// it was done before. Without a key this is just [`begin`](Self::begin).
    ///
    /// ```
    /// # use antiphon_core::Status;
    /// # use antiphon_outbox::{Call, CallStore, Database, OutboxStore, RequestHash};
    /// # async fn example<S: OutboxStore + CallStore, Q: buffa::Message, A: buffa::Message>(
    /// #     db: Database<S>, request: Q, place: impl AsyncFn(Q, &mut antiphon_outbox::Tx<S>) -> Result<A, Status>,
    /// # ) -> Result<A, Status> {
    /// let mut tx = match db.begin_call("shop.Orders/Place", RequestHash::of(&request)).await? {
    ///     Call::Answered(order) => return Ok(order),
    ///     Call::New(tx) => tx,
    /// };
    /// let order = place(request, &mut tx).await?;
    /// tx.commit(&order).await?;
    /// Ok(order)
    /// # }
    /// ```
    ///
    /// # Errors
    /// FAILED_PRECONDITION with the reason `IDEMPOTENCY_KEY_REUSED` when the key was used for
    /// another request; INVALID_ARGUMENT for a key that is too long; else the trouble of the store.
    pub async fn begin_call<A: Protobuf>(
        &self,
        method: &str,
        request: RequestHash,
    ) -> Result<Call<S, A>, Status> {
        let key = Context::with_current(|context| {
            context.and_then(|context| context.idempotency_key().map(str::to_owned))
        });
        let Some(key) = key else {
            return Ok(Call::New(CallTx { tx: self.begin().await?, place: None }));
        };
        check(&key)?;
        let mut tx = self.begin().await?;
        let Some(earlier) = self.store().recall(tx.connection(), method, &key).await? else {
            let place = Some((method.to_owned(), key, request.0));
            return Ok(Call::New(CallTx { tx, place }));
        };
        if earlier.request_hash != request.0 {
            return Err(reused(&key));
        }
        A::decode_from_slice(&earlier.answer).map(Call::Answered).map_err(|error| {
            Status::internal(format!("the stored answer of {method} cannot be read: {error}"))
        })
    }

    /// Does `work` once per idempotency key, and commits it with its answer; done again when the
    /// database was busy, as with [`transact`](Self::transact). Of two equal calls at the same
    /// time, one does the work and the other gets its answer.
    ///
    /// # Errors
    /// What `work` returns, which is not stored; or as [`begin_call`](Self::begin_call).
    pub async fn idempotent<'env, A, E>(
        &self,
        method: &str,
        request: RequestHash,
        mut work: impl for<'t> FnMut(InTx<'t, 'env, S>) -> BoxFuture<'t, Result<A, E>> + Send,
    ) -> Result<A, E>
    where
        A: Protobuf,
        E: From<Status>,
    {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut tx = match self.begin_call::<A>(method, request).await? {
                Call::Answered(answer) => return Ok(answer),
                Call::New(tx) => tx,
            };
            let answer = match work(InTx::new(&mut tx)).await {
                Ok(answer) => answer,
                Err(error) => {
                    pause_if_in_the_way(tx.tx, attempt, error).await?;
                    continue;
                }
            };
            match tx.commit(&answer).await {
                Ok(()) => return Ok(answer),
                Err(error) => pause_if_busy(error, attempt).await.map_err(Status::from)?,
            }
        }
    }
}

fn check(key: &str) -> Result<(), Status> {
    if key.len() <= KEY_BYTES_MAX {
        return Ok(());
    }
    let text = format!("the idempotency key has {} bytes; at most {KEY_BYTES_MAX}", key.len());
    Err(Status::invalid_argument(text).with_reason("IDEMPOTENCY_KEY_TOO_LONG", DOMAIN))
}

/// As the IETF draft on the Idempotency-Key header asks: 422 over REST.
fn reused(key: &str) -> Status {
    Status::new(Code::FailedPrecondition, "the idempotency key was used for another request")
        .with_reason("IDEMPOTENCY_KEY_REUSED", DOMAIN)
        .with_metadata("key", key)
        .with_http_status(422)
}

impl<S: OutboxStore + CallStore> CallTx<S> {
    /// Stores the answer and commits.
    ///
    /// # Errors
    /// See [`CommitError`]; busy when the same call was answered meanwhile.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the outcome unknown; the same call again finds out.
    pub async fn commit<A: Protobuf>(mut self, answer: &A) -> Result<(), CommitError> {
        if let Some((method, key, request_hash)) = &self.place {
            let call =
                StoredCall { request_hash: *request_hash, answer: answer.encode_to_vec().into() };
            let store = self.tx.database().store().clone();
            store
                .remember(self.tx.connection(), method, key, &call)
                .await
                .map_err(CommitError::RolledBack)?;
        }
        self.tx.commit().await
    }
}

impl<S: Store> Deref for CallTx<S> {
    type Target = Tx<S>;
    fn deref(&self) -> &Tx<S> {
        &self.tx
    }
}

impl<S: Store> DerefMut for CallTx<S> {
    fn deref_mut(&mut self) -> &mut Tx<S> {
        &mut self.tx
    }
}

impl<S: Store> fmt::Debug for CallTx<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallTx").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<S: Store, A> fmt::Debug for Call<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answered(_) => "Answered",
            Self::New(_) => "New",
        })
    }
}
