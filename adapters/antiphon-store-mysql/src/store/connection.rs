//! The open transaction that user code runs its statements on.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};

use antiphon_outbox::{CommitError, StoreError};
use sqlx::{MySqlConnection, Row};

use crate::error::{Stage, Trouble, commit_error, store_error, trouble, trouble_of_number};
use crate::session::{BEGIN, MARK, Session, within};
use crate::sql::{Answer, Sql, run, run_counting};

/// An open transaction: a `sqlx` connection that commits with [`MysqlStore`](crate::MysqlStore)'s
/// `commit` and otherwise rolls back. Savepoints (`sqlx::Connection::begin`) nest in it.
///
/// Statements that commit by themselves (changes of tables, `COMMIT`) and statements after a
/// deadlock make `commit` fail: the transaction is over then.
#[derive(Debug)]
pub struct Connection {
    session: Session,
    deferred: Deferred,
}

/// Statements of the framework that go with COMMIT, in one round trip.
#[derive(Debug, Default)]
pub(crate) struct Deferred {
    sql: Sql,
    count: usize,
    /// Rows of `antiphon_key` to lock before `last` runs, in order, so that no two transactions wait
    /// for each other in a circle.
    slots: BTreeSet<u64>,
    /// What runs last: the inserts into the outbox.
    last: Sql,
    last_count: usize,
}

impl Deferred {
    /// Adds a statement.
    pub(crate) fn statement(&mut self, sql: &Sql) {
        self.sql.append(sql).sql(";");
        self.count += 1;
    }

    /// Adds a statement that runs after all others, when the rows of `slots` are locked.
    pub(crate) fn last(&mut self, sql: &Sql, slots: impl IntoIterator<Item = u64>) {
        self.slots.extend(slots);
        self.last.append(sql).sql(";");
        self.last_count += 1;
    }

    /// How long the text is by now.
    pub(crate) fn len(&self) -> usize {
        self.sql.len() + self.last.len()
    }

    /// The text and how many statements it has.
    fn take(&mut self) -> (Sql, usize) {
        let Self { mut sql, mut count, slots, last, last_count } = std::mem::take(self);
        if !slots.is_empty() {
            sql.sql("SELECT slot FROM antiphon_key FORCE INDEX (PRIMARY) WHERE slot IN (");
            sql.numbers(slots.iter().map(|slot| i64::try_from(*slot).unwrap_or(0)));
            sql.sql(") ORDER BY slot FOR UPDATE;");
            count += 1;
        }
        sql.append(&last);
        (sql, count + last_count)
    }
}

impl Connection {
    pub(crate) fn new(session: Session) -> Self {
        Self { session, deferred: Deferred::default() }
    }

    pub(crate) const fn deferred(&mut self) -> &mut Deferred {
        &mut self.deferred
    }

    /// See [`Session::number`].
    pub(crate) const fn number(&self) -> u32 {
        self.session.number()
    }

    /// Runs statements of the framework now.
    pub(crate) async fn run(
        &mut self,
        action: &'static str,
        sql: Sql,
    ) -> Result<Vec<Answer>, StoreError> {
        self.try_run(sql).await.map_err(store_error(action))
    }

    /// As [`run`](Self::run), for who looks at the error.
    pub(crate) async fn try_run(&mut self, sql: Sql) -> Result<Vec<Answer>, sqlx::Error> {
        let limit = self.session.statement_timeout();
        within(limit, run(self.session.sql()?, sql)).await
    }

    /// Whether the last statement failed because of a deadlock or a lock that was not given up: the
    /// server remembers its errors until the next statement.
    pub(crate) async fn met_other_work(&mut self) -> bool {
        let answers = self.try_run(Sql::new("SHOW ERRORS")).await.unwrap_or_default();
        let rows = answers.iter().flat_map(|answer| &answer.rows);
        rows.filter_map(|row| row.try_get::<u32, _>(1).ok())
            .filter_map(|number| u16::try_from(number).ok())
            .any(|number| trouble_of_number(number) == Trouble::Conflict)
    }

    /// Runs what was put off, because it gets too long.
    pub(crate) async fn flush(&mut self, action: &'static str) -> Result<(), StoreError> {
        let (sql, count) = self.deferred.take();
        if count > 0 {
            self.run(action, sql).await?;
        }
        Ok(())
    }

    pub(crate) async fn commit(mut self) -> Result<(), CommitError> {
        let (deferred, count) = self.deferred.take();
        let mut sql = Sql::new("RELEASE SAVEPOINT ");
        sql.sql(MARK).sql(";").append(&deferred).sql("COMMIT;").sql(BEGIN);
        let before = count + 1;
        let limit = self.session.statement_timeout();
        let mut done = 0;
        let answer = match self.session.sql() {
            Ok(connection) => within(limit, run_counting(connection, sql, &mut done)).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(_) => {
                self.session.give_back();
                Ok(())
            }
            // Committed; only the next transaction did not begin.
            Err(_) if done > before => {
                self.session.discard();
                Ok(())
            }
            Err(error) => {
                if matches!(trouble(&error), Trouble::Broken | Trouble::Ended) {
                    self.session.discard();
                }
                let stage = if done < before { Stage::Before } else { Stage::Commit };
                Err(commit_error(error, stage))
            }
        }
    }
}

impl Deref for Connection {
    type Target = MySqlConnection;
    fn deref(&self) -> &MySqlConnection {
        match self.session.connection() {
            Some(connection) => connection,
            None => unreachable!("a connection is given up by commit only, which consumes it"),
        }
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut MySqlConnection {
        match self.session.connection_mut() {
            Some(connection) => connection,
            None => unreachable!("a connection is given up by commit only, which consumes it"),
        }
    }
}
