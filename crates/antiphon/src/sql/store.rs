//! The store of a service whose engine the settings decide: each port is the engine's own.

use std::time::Duration;

use antiphon_core::{Finding, Timestamp};
use antiphon_messaging::Message;
use antiphon_outbox::{
    Buried, CallStore, CommitError, Confirmation, HandledCount, InboxEntry, InboxStore, Lease,
    LeaseStore, OutboxRow, OutboxStore, Position, SentCount, Seq, Store, StoreError, StoredCall,
};
use antiphon_saga::{
    BarrierKey, BarrierStore, Passage, SagaCount, SagaFilter, SagaId, SagaRow, SagaStore,
    StoredReply,
};
use antiphon_store_sqlite::SqliteStore;

use super::reader::{Pool, Reader};
use super::transaction::{Open, SqlTransaction};

/// A service's database on any of the engines that this program was built with. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Sql {
    /// In a SQLite file.
    Sqlite(SqliteStore),
    /// In PostgreSQL.
    #[cfg(feature = "postgres")]
    Postgres(antiphon_store_postgres::PostgresStore),
    /// In MySQL or MariaDB.
    #[cfg(feature = "mysql")]
    Mysql(antiphon_store_mysql::MysqlStore),
}

/// The same on whichever engine it is.
macro_rules! each {
    ($self:ident, $store:ident => $work:expr) => {
        match $self {
            Sql::Sqlite($store) => $work,
            #[cfg(feature = "postgres")]
            Sql::Postgres($store) => $work,
            #[cfg(feature = "mysql")]
            Sql::Mysql($store) => $work,
        }
    };
}

/// The same in a transaction of the engine.
macro_rules! within {
    ($self:ident, $transaction:ident, ($store:ident, $open:ident) => $work:expr) => {
        match ($self, $transaction.open()) {
            (Sql::Sqlite($store), Open::Sqlite($open)) => $work,
            #[cfg(feature = "postgres")]
            (Sql::Postgres($store), Open::Postgres($open)) => $work,
            #[cfg(feature = "mysql")]
            (Sql::Mysql($store), Open::Mysql($open)) => $work,
            #[cfg(any(feature = "postgres", feature = "mysql"))]
            _ => Err(foreign()),
        }
    };
}

/// A transaction was handed to a store that it is not of.
#[cfg(any(feature = "postgres", feature = "mysql"))]
fn foreign() -> StoreError {
    let source = "the transaction belongs to a database of another engine".into();
    StoreError::Failed { action: "using a transaction", source }
}

impl Sql {
    /// Connections for statements that only read, outside of transactions.
    #[must_use]
    pub fn reader(&self) -> Reader<'_> {
        Reader(match self {
            Self::Sqlite(store) => Pool::Sqlite(store.reader()),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => Pool::Postgres(store.reader()),
            #[cfg(feature = "mysql")]
            Self::Mysql(store) => Pool::Mysql(store.reader()),
        })
    }

    /// The name of the engine: `sqlite`, `postgres`, `mysql`.
    #[must_use]
    pub const fn engine(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => "postgres",
            #[cfg(feature = "mysql")]
            Self::Mysql(_) => "mysql",
        }
    }
}

impl Store for Sql {
    type Connection = SqlTransaction;

    async fn begin(&self) -> Result<SqlTransaction, StoreError> {
        let open = match self {
            Self::Sqlite(store) => Open::Sqlite(store.begin().await?),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => Open::Postgres(store.begin().await?),
            #[cfg(feature = "mysql")]
            Self::Mysql(store) => Open::Mysql(store.begin().await?),
        };
        Ok(SqlTransaction::new(open))
    }

    async fn commit(&self, transaction: SqlTransaction) -> Result<(), CommitError> {
        match (self, transaction.into_open()) {
            (Self::Sqlite(store), Open::Sqlite(open)) => store.commit(open).await,
            #[cfg(feature = "postgres")]
            (Self::Postgres(store), Open::Postgres(open)) => store.commit(open).await,
            #[cfg(feature = "mysql")]
            (Self::Mysql(store), Open::Mysql(open)) => store.commit(open).await,
            #[cfg(any(feature = "postgres", feature = "mysql"))]
            _ => Err(CommitError::RolledBack(foreign())),
        }
    }

    fn now(&self) -> Timestamp {
        each!(self, store => store.now())
    }

    fn one_writer(&self) -> bool {
        each!(self, store => store.one_writer())
    }

    async fn met_other_work(&self, transaction: &mut SqlTransaction) -> bool {
        match (self, transaction.open()) {
            (Self::Sqlite(store), Open::Sqlite(open)) => store.met_other_work(open).await,
            #[cfg(feature = "postgres")]
            (Self::Postgres(store), Open::Postgres(open)) => store.met_other_work(open).await,
            #[cfg(feature = "mysql")]
            (Self::Mysql(store), Open::Mysql(open)) => store.met_other_work(open).await,
            #[cfg(any(feature = "postgres", feature = "mysql"))]
            _ => false,
        }
    }

    async fn findings(&self) -> Vec<Finding> {
        each!(self, store => store.findings().await)
    }
}

impl LeaseStore for Sql {
    async fn acquire(
        &self,
        scope: &str,
        lanes: u32,
        count_max: u32,
        owner: &str,
        ttl: Duration,
    ) -> Result<Vec<Lease>, StoreError> {
        each!(self, store => store.acquire(scope, lanes, count_max, owner, ttl).await)
    }

    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        each!(self, store => store.renew(leases, ttl).await)
    }

    async fn release(&self, leases: &[Lease]) -> Result<(), StoreError> {
        each!(self, store => store.release(leases).await)
    }

    async fn instances(&self, scope: &str, owner: &str, ttl: Duration) -> Result<u32, StoreError> {
        each!(self, store => store.instances(scope, owner, ttl).await)
    }

    async fn leave(&self, scope: &str, owner: &str) -> Result<(), StoreError> {
        each!(self, store => store.leave(scope, owner).await)
    }
}

impl OutboxStore for Sql {
    async fn append(
        &self,
        transaction: &mut SqlTransaction,
        messages: &[Message],
    ) -> Result<(), StoreError> {
        within!(self, transaction, (store, open) => store.append(open, messages).await)
    }

    async fn read(
        &self,
        positions: &[Position],
        due_by: Timestamp,
        count_max: u32,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        each!(self, store => store.read(positions, due_by, count_max).await)
    }

    async fn confirm(&self, confirmations: &[Confirmation]) -> Result<Vec<u32>, StoreError> {
        each!(self, store => store.confirm(confirmations).await)
    }

    async fn bury(&self, lease: &Lease, row: Seq, reason: &str) -> Result<(), StoreError> {
        each!(self, store => store.bury(lease, row, reason).await)
    }

    async fn buried(&self, count_max: u32) -> Result<Vec<Buried>, StoreError> {
        each!(self, store => store.buried(count_max).await)
    }

    async fn backlog(&self) -> Result<(u64, Option<Timestamp>), StoreError> {
        each!(self, store => store.backlog().await)
    }

    async fn sent(&self) -> Result<Vec<SentCount>, StoreError> {
        each!(self, store => store.sent().await)
    }

    async fn changed(&self) {
        each!(self, store => store.changed().await);
    }
}

impl InboxStore for Sql {
    async fn enter(
        &self,
        transaction: &mut SqlTransaction,
        consumer: &str,
        messages: &[&Message],
    ) -> Result<Vec<InboxEntry>, StoreError> {
        within!(self, transaction, (store, open) => store.enter(open, consumer, messages).await)
    }

    async fn expire(&self, horizon: Timestamp) -> Result<u64, StoreError> {
        each!(self, store => store.expire(horizon).await)
    }

    async fn handled(&self) -> Result<Vec<HandledCount>, StoreError> {
        each!(self, store => store.handled().await)
    }
}

impl CallStore for Sql {
    async fn recall(
        &self,
        transaction: &mut SqlTransaction,
        method: &str,
        key: &str,
    ) -> Result<Option<StoredCall>, StoreError> {
        within!(self, transaction, (store, open) => store.recall(open, method, key).await)
    }

    async fn remember(
        &self,
        transaction: &mut SqlTransaction,
        method: &str,
        key: &str,
        call: &StoredCall,
    ) -> Result<(), StoreError> {
        within!(self, transaction, (store, open) => store.remember(open, method, key, call).await)
    }

    async fn forget(&self, before: Timestamp) -> Result<u64, StoreError> {
        each!(self, store => store.forget(before).await)
    }
}

impl SagaStore for Sql {
    async fn insert(
        &self,
        transaction: &mut SqlTransaction,
        row: &SagaRow,
    ) -> Result<bool, StoreError> {
        within!(self, transaction, (store, open) => store.insert(open, row).await)
    }

    async fn load(
        &self,
        transaction: &mut SqlTransaction,
        ids: &[SagaId],
    ) -> Result<Vec<SagaRow>, StoreError> {
        within!(self, transaction, (store, open) => store.load(open, ids).await)
    }

    async fn save(
        &self,
        transaction: &mut SqlTransaction,
        rows: &[SagaRow],
    ) -> Result<(), StoreError> {
        within!(self, transaction, (store, open) => store.save(open, rows).await)
    }

    async fn find(
        &self,
        transaction: &mut SqlTransaction,
        kind: &str,
        correlation: &str,
    ) -> Result<Option<SagaRow>, StoreError> {
        within!(self, transaction, (store, open) => store.find(open, kind, correlation).await)
    }

    async fn due(
        &self,
        lanes: &[u32],
        now: Timestamp,
        count_max: u32,
    ) -> Result<Vec<SagaId>, StoreError> {
        each!(self, store => store.due(lanes, now, count_max).await)
    }

    async fn live(&self) -> Result<Vec<SagaCount>, StoreError> {
        each!(self, store => store.live().await)
    }

    async fn list(&self, filter: &SagaFilter, count_max: u32) -> Result<Vec<SagaRow>, StoreError> {
        each!(self, store => store.list(filter, count_max).await)
    }

    async fn forget_ended(&self, before: Timestamp, count_max: u32) -> Result<u64, StoreError> {
        each!(self, store => store.forget_ended(before, count_max).await)
    }
}

impl BarrierStore for Sql {
    async fn pass(
        &self,
        transaction: &mut SqlTransaction,
        key: &BarrierKey,
        now: Timestamp,
    ) -> Result<Passage, StoreError> {
        within!(self, transaction, (store, open) => store.pass(open, key, now).await)
    }

    async fn enter_and_pass(
        &self,
        transaction: &mut SqlTransaction,
        consumer: &str,
        message: &Message,
        key: &BarrierKey,
        now: Timestamp,
    ) -> Result<(InboxEntry, Option<Passage>), StoreError> {
        within!(self, transaction, (store, open) => {
            store.enter_and_pass(open, consumer, message, key, now).await
        })
    }

    async fn answer(
        &self,
        transaction: &mut SqlTransaction,
        key: &BarrierKey,
        reply: &StoredReply,
    ) -> Result<(), StoreError> {
        within!(self, transaction, (store, open) => store.answer(open, key, reply).await)
    }

    async fn retract(
        &self,
        transaction: &mut SqlTransaction,
        key: &BarrierKey,
    ) -> Result<(), StoreError> {
        within!(self, transaction, (store, open) => store.retract(open, key).await)
    }

    async fn forget_passed(&self, before: Timestamp, count_max: u32) -> Result<u64, StoreError> {
        each!(self, store => store.forget_passed(before, count_max).await)
    }
}
