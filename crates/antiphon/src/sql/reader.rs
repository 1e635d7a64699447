//! Reading outside of transactions, on whatever engine it is.

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use sqlx::any::{Any, AnyQueryResult, AnyRow, AnyStatement, AnyTypeInfo};
use sqlx::pool::PoolConnection;
use sqlx::{Database, Either, Error, Execute, Executor, SqlStr};
use sqlx_core::any::AnyConnectionBackend;

use super::transaction::{Dialect, Statement};

/// Connections for statements that only read: a `sqlx` executor of [`Any`]. Cheap to copy.
///
/// What a statement finds is held in memory as a whole before the first row is seen.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub(super) Pool<'a>);

#[derive(Clone, Copy, Debug)]
pub(super) enum Pool<'a> {
    Sqlite(&'a sqlx::SqlitePool),
    #[cfg(feature = "postgres")]
    Postgres(&'a sqlx::PgPool),
    #[cfg(feature = "mysql")]
    Mysql(&'a sqlx::MySqlPool),
}

type Step = Either<AnyQueryResult, AnyRow>;

impl Reader<'_> {
    fn dialect(self) -> Dialect {
        match self.0 {
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => Dialect::Numbered,
            _ => Dialect::Plain,
        }
    }

    async fn all(self, statement: Result<Statement, Error>) -> Result<Vec<Step>, Error> {
        let statement = statement?;
        match self.0 {
            Pool::Sqlite(pool) => run(pool.acquire().await?, statement).await,
            #[cfg(feature = "postgres")]
            Pool::Postgres(pool) => run(pool.acquire().await?, statement).await,
            #[cfg(feature = "mysql")]
            Pool::Mysql(pool) => run(pool.acquire().await?, statement).await,
        }
    }
}

async fn run<DB>(
    mut connection: PoolConnection<DB>,
    statement: Statement,
) -> Result<Vec<Step>, Error>
where
    DB: Database<Connection: AnyConnectionBackend>,
{
    let Statement { sql, persistent, arguments } = statement;
    AnyConnectionBackend::fetch_many(&mut *connection, sql, persistent, arguments)
        .try_collect()
        .await
}

impl<'c> Executor<'c> for Reader<'c> {
    type Database = Any;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        let statement = Statement::of(query, self.dialect());
        let steps = async move {
            match self.all(statement).await {
                Ok(steps) => steps.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            }
        };
        futures_util::stream::once(steps).flat_map(futures_util::stream::iter).boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<AnyRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        let statement = Statement::of(query, self.dialect());
        Box::pin(async move {
            let steps = self.all(statement).await?;
            Ok(steps.into_iter().find_map(Either::right))
        })
    }

    fn prepare_with<'e>(
        self,
        _: SqlStr,
        _: &'e [AnyTypeInfo],
    ) -> BoxFuture<'e, Result<AnyStatement, Error>>
    where
        'c: 'e,
    {
        // A statement is prepared on one connection; here each may run on another.
        let refusal =
            "statements are prepared by running them; a reader has no connection of its own";
        Box::pin(std::future::ready(Err(Error::AnyDriverError(refusal.into()))))
    }
}
