//! Answers of calls that may come twice: the port.

use antiphon_core::Timestamp;
use bytes::Bytes;

use super::{Store, StoreError};

/// The stored answer of an idempotent call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCall {
    /// A hash of the request: the same key with another request is an error of the caller.
    pub request_hash: u64,
    /// The encoded answer.
    pub answer: Bytes,
}

/// Remembers answers by the caller's idempotency key.
///
/// 1. `remember` is part of the transaction that did the work.
/// 2. Of two transactions with the same method and key, the second fails with
///    [`StoreError::Busy`] or finds the answer of the first.
/// 3. `forget` forgets what was remembered before a moment, and nothing later.
pub trait CallStore: Store {
    /// The answer to an earlier call with this method and key.
    ///
    /// # Errors
    /// The store fails.
    fn recall(
        &self,
        connection: &mut Self::Connection,
        method: &str,
        key: &str,
    ) -> impl Future<Output = Result<Option<StoredCall>, StoreError>> + Send;

    /// Stores the answer with the work.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when there is an answer by now; otherwise the store fails. The
    /// transaction must be rolled back.
    fn remember(
        &self,
        connection: &mut Self::Connection,
        method: &str,
        key: &str,
        call: &StoredCall,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Forgets the answers that were remembered before `before`, and says how many.
    ///
    /// # Errors
    /// The store fails.
    fn forget(&self, before: Timestamp) -> impl Future<Output = Result<u64, StoreError>> + Send;
}
