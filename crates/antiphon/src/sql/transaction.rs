//! The open transaction of a service whose engine the settings decide.

use std::fmt;
use std::ops::{Deref, DerefMut};

use antiphon_store_sqlite as sqlite;
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use sqlx::any::{Any, AnyArguments, AnyQueryResult, AnyRow, AnyStatement, AnyTypeInfo};
use sqlx::{AssertSqlSafe, Either, Error, Execute, Executor, SqlSafeStr, SqlStr};
use sqlx_core::any::AnyConnectionBackend;

use super::placeholders::numbered;

/// An open transaction on any of the engines. Derefs to [`Statements`], which run on it.
#[derive(Debug)]
pub struct SqlTransaction(Statements);

/// What statements run on: `&mut Statements` is a `sqlx` executor of [`Any`].
pub struct Statements(pub(super) Open);

pub(super) enum Open {
    Sqlite(sqlite::Connection),
    #[cfg(feature = "postgres")]
    Postgres(antiphon_store_postgres::Connection),
    #[cfg(feature = "mysql")]
    Mysql(antiphon_store_mysql::Connection),
}

impl SqlTransaction {
    pub(super) fn new(open: Open) -> Self {
        Self(Statements(open))
    }

    pub(super) fn open(&mut self) -> &mut Open {
        &mut self.0.0
    }

    pub(super) fn into_open(self) -> Open {
        self.0.0
    }
}

impl Deref for SqlTransaction {
    type Target = Statements;
    fn deref(&self) -> &Statements {
        &self.0
    }
}

impl DerefMut for SqlTransaction {
    fn deref_mut(&mut self) -> &mut Statements {
        &mut self.0
    }
}

impl Statements {
    /// The engine's own connection.
    fn backend(&mut self) -> &mut dyn AnyConnectionBackend {
        match &mut self.0 {
            Open::Sqlite(connection) => &mut **connection,
            #[cfg(feature = "postgres")]
            Open::Postgres(connection) => &mut **connection,
            #[cfg(feature = "mysql")]
            Open::Mysql(connection) => &mut **connection,
        }
    }

    fn dialect(&self) -> Dialect {
        match &self.0 {
            #[cfg(feature = "postgres")]
            Open::Postgres(_) => Dialect::Numbered,
            _ => Dialect::Plain,
        }
    }
}

impl fmt::Debug for Statements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Statements")
    }
}

/// How an engine writes the place of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `?`.
    Plain,
    /// `$1`.
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "PostgreSQL's alone"))]
    Numbered,
}

impl Dialect {
    pub(super) fn write(self, sql: SqlStr) -> SqlStr {
        if self == Self::Plain {
            return sql;
        }
        match numbered(sql.as_str()) {
            std::borrow::Cow::Borrowed(_) => sql,
            // As safe as it was: only the places of values are written differently.
            std::borrow::Cow::Owned(text) => AssertSqlSafe(text).into_sql_str(),
        }
    }
}

/// A statement taken apart, so that it can be run on an engine.
pub(super) struct Statement {
    pub(super) sql: SqlStr,
    pub(super) persistent: bool,
    pub(super) arguments: Option<AnyArguments>,
}

impl Statement {
    /// Takes a query apart, its arguments encoded.
    pub(super) fn of<'q>(
        mut query: impl Execute<'q, Any>,
        dialect: Dialect,
    ) -> Result<Self, Error> {
        let arguments = query.take_arguments().map_err(Error::Encode)?;
        let persistent = query.persistent();
        Ok(Self { sql: dialect.write(query.sql()), persistent, arguments })
    }
}

impl<'c> Executor<'c> for &'c mut Statements {
    type Database = Any;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<AnyQueryResult, AnyRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        match Statement::of(query, self.dialect()) {
            Ok(Statement { sql, persistent, arguments }) => {
                self.backend().fetch_many(sql, persistent, arguments)
            }
            Err(error) => Box::pin(futures_util::stream::iter([Err(error)])),
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<AnyRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        match Statement::of(query, self.dialect()) {
            Ok(Statement { sql, persistent, arguments }) => {
                self.backend().fetch_optional(sql, persistent, arguments)
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [AnyTypeInfo],
    ) -> BoxFuture<'e, Result<AnyStatement, Error>>
    where
        'c: 'e,
    {
        let sql = self.dialect().write(sql);
        self.backend().prepare_with(sql, parameters)
    }
}
