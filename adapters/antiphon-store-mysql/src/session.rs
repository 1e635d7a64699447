//! Connections of this process to one database, and who uses them.
//!
//! There are two kinds. A session for reads runs each statement for itself. A session for
//! transactions is always inside one: the text that commits begins the next one, so nobody waits for
//! a BEGIN, and an idle session has a transaction that the server has not done anything for. The
//! driver believes to be in one long transaction, and makes savepoints of the user's `begin`.
//! Autocommit is off besides: what follows a deadlock is a transaction again, and is undone.
//!
//! Each transaction begins with the savepoint [`MARK`], and commits after releasing it. A server
//! that ended the transaction meanwhile (a deadlock, a statement that commits by itself) does not
//! know the savepoint any more, and so nothing half-done is ever committed as if it were whole.
//!
//! A session that was silent for a moment is tried before it is used; one that fails is replaced.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use antiphon_outbox::StoreError;
use parking_lot::Mutex;
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions, MySqlTransactionManager};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection as _, MySqlConnection, MySqlPool, SqlSafeStr,
};
use sqlx_core::transaction::TransactionManager;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::error::{Trouble, store_error, trouble};
use crate::location::Location;
use crate::settings::{Settings, seconds};

/// The savepoint at the beginning of every transaction.
pub(crate) const MARK: &str = "antiphon_begin";
/// How the next transaction begins. Without BEGIN the driver would not believe in it.
pub(crate) const BEGIN: &str = "BEGIN; SAVEPOINT antiphon_begin";
/// What ends a transaction without its effects, and begins the next.
const ROLLBACK: &str = "ROLLBACK; BEGIN; SAVEPOINT antiphon_begin";

/// A session that was silent for longer is tried before it is used.
const TRUST: Duration = Duration::from_millis(250);

/// How many connections read outside of transactions.
pub(crate) const READERS_MAX: u32 = 4;

/// Values that are too long or no dates are errors, never silently changed.
const SQL_MODE: &str = "STRICT_TRANS_TABLES,STRICT_ALL_TABLES,ONLY_FULL_GROUP_BY,NO_ZERO_IN_DATE,\
                        NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION,\
                        PIPES_AS_CONCAT";

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Statements that stand for themselves.
    Reads,
    /// One transaction after the other.
    Transactions,
}

/// The sessions of one kind.
#[derive(Debug)]
pub(crate) struct Sessions {
    options: MySqlConnectOptions,
    settings: Settings,
    kind: Kind,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
    opened: AtomicU32,
}

#[derive(Debug)]
struct Idle {
    connection: MySqlConnection,
    number: u32,
    since: Instant,
}

/// One session and the right to use it. Dropped, it undoes what was not committed and goes back.
#[derive(Debug)]
pub(crate) struct Session {
    sessions: Arc<Sessions>,
    /// `None` once it was found broken or has gone back.
    connection: Option<MySqlConnection>,
    number: u32,
    permit: Option<OwnedSemaphorePermit>,
}

/// The statements that set a session up, in one text.
pub(crate) fn setup(kind: Kind, settings: &Settings) -> String {
    let autocommit = u8::from(kind == Kind::Reads);
    let lock_wait = seconds(settings.lock_timeout);
    let silence = seconds(settings.idle_in_transaction_timeout);
    format!(
        "SET NAMES utf8mb4 COLLATE utf8mb4_bin; \
         SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
         SET SESSION sql_mode = '{SQL_MODE}', time_zone = '+00:00', autocommit = {autocommit}, \
         innodb_lock_wait_timeout = {lock_wait}, lock_wait_timeout = {lock_wait}, \
         wait_timeout = {silence}"
    )
}

/// Connects to the database and sets the session up.
pub(crate) async fn connect(
    options: &MySqlConnectOptions,
    kind: Kind,
    settings: &Settings,
) -> Result<MySqlConnection, sqlx::Error> {
    let connecting = async {
        let mut connection = options.connect().await?;
        let setup = setup(kind, settings);
        match kind {
            Kind::Reads => {
                sqlx::raw_sql(AssertSqlSafe(setup)).execute(&mut connection).await?;
            }
            Kind::Transactions => {
                let begin = AssertSqlSafe(format!("{setup}; {BEGIN}")).into_sql_str();
                MySqlTransactionManager::begin(&mut connection, Some(begin)).await?;
            }
        }
        Ok(connection)
    };
    within(settings.connect_timeout, connecting).await
}

/// A pool of the driver's own kind whose connections are set up like ours: for statements of the
/// user outside of transactions. It connects when it is first used.
pub(crate) fn pool(location: &Location, connections_max: u32, settings: &Settings) -> MySqlPool {
    let setup: Arc<str> = setup(Kind::Reads, settings).into();
    MySqlPoolOptions::new()
        .max_connections(connections_max.max(1))
        .acquire_timeout(settings.acquire_timeout)
        .test_before_acquire(false)
        // Closed here before the server would, and tried after a silence.
        .idle_timeout(settings.idle_in_transaction_timeout / 2)
        .max_lifetime(None)
        .before_acquire(|connection, about| {
            Box::pin(async move { Ok(about.idle_for < TRUST || connection.ping().await.is_ok()) })
        })
        .after_connect(move |connection, _| {
            let setup = Arc::clone(&setup);
            Box::pin(async move {
                let setup = AssertSqlSafe(setup.to_string());
                sqlx::raw_sql(setup).execute(connection).await.map(drop)
            })
        })
        .connect_lazy_with(location.options())
}

impl Sessions {
    pub(crate) fn new(location: &Location, kind: Kind, settings: &Settings) -> Arc<Self> {
        let max = match kind {
            Kind::Reads => READERS_MAX,
            Kind::Transactions => settings.connections_max,
        };
        Arc::new(Self {
            options: location.options(),
            settings: settings.clone(),
            kind,
            permits: Arc::new(Semaphore::new(usize::try_from(max.max(1)).unwrap_or(1))),
            idle: Mutex::new(Vec::new()),
            opened: AtomicU32::new(0),
        })
    }

    /// Waits for a session.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when all of them stayed in use; else the server cannot be reached.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Result<Session, StoreError> {
        let permits = Arc::clone(&self.permits);
        let permit = timeout(self.settings.acquire_timeout, permits.acquire_owned())
            .await
            .map_err(|_| StoreError::Busy("all connections stayed in use".into()))?
            .map_err(|closed| StoreError::Failed { action: "begin", source: closed.into() })?;
        let (connection, number) = match self.take_idle().await {
            Some(idle) => (idle.connection, idle.number),
            None => {
                let connection = connect(&self.options, self.kind, &self.settings)
                    .await
                    .map_err(store_error("connecting to the database"))?;
                (connection, self.opened.fetch_add(1, Ordering::Relaxed))
            }
        };
        Ok(Session {
            sessions: Arc::clone(self),
            connection: Some(connection),
            number,
            permit: Some(permit),
        })
    }

    async fn take_idle(&self) -> Option<Idle> {
        loop {
            let mut idle = self.idle.lock().pop()?;
            if idle.since.elapsed() < TRUST {
                return Some(idle);
            }
            match timeout(self.settings.connect_timeout, idle.connection.ping()).await {
                Ok(Ok(())) => return Some(idle),
                // What broke this one has broken those that were silent for longer, too.
                Ok(Err(_)) | Err(_) => self.idle.lock().clear(),
            }
        }
    }
}

impl Session {
    pub(crate) const fn connection(&self) -> Option<&MySqlConnection> {
        self.connection.as_ref()
    }

    pub(crate) const fn connection_mut(&mut self) -> Option<&mut MySqlConnection> {
        self.connection.as_mut()
    }

    /// The connection, for statements.
    pub(crate) fn sql(&mut self) -> Result<&mut MySqlConnection, sqlx::Error> {
        self.connection.as_mut().ok_or_else(|| timed_out("the connection was given up"))
    }

    /// Differs among the sessions that are open at a time, mostly.
    pub(crate) const fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn statement_timeout(&self) -> Duration {
        self.sessions.settings.statement_timeout
    }

    /// Gives the session back: it is at the beginning of its next transaction, and nothing is
    /// being asked.
    pub(crate) fn give_back(mut self) {
        if let Some(connection) = self.connection.take() {
            self.sessions.keep(connection, self.number);
        }
    }

    /// Gives the connection up: what it has not committed is undone when the server notices.
    pub(crate) fn discard(&mut self) {
        self.connection = None;
    }

    /// Takes the answer to what was asked on the session, which is given back unless it broke.
    pub(crate) fn settle<T>(mut self, answer: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        match &answer {
            Err(error) if matches!(trouble(error), Trouble::Broken | Trouble::Ended) => {
                self.discard();
            }
            _ => self.give_back(),
        }
        answer
    }
}

/// Waits for an answer, but not for ever.
pub(crate) async fn within<T>(
    limit: Duration,
    asking: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    match timeout(limit, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(timed_out("the server did not answer in time")),
    }
}

impl Sessions {
    /// Closes what was silent for so long that the server would soon do it.
    pub(crate) async fn close_silent(&self) {
        let limit = self.settings.idle_in_transaction_timeout / 2;
        let silent: Vec<Idle> = {
            let mut idle = self.idle.lock();
            // The ones used last are at the end.
            let count = idle.iter().take_while(|idle| idle.since.elapsed() > limit).count();
            idle.drain(..count).collect()
        };
        close(silent).await;
    }

    fn keep(&self, connection: MySqlConnection, number: u32) {
        self.idle.lock().push(Idle { connection, number, since: Instant::now() });
    }
}

/// Takes leave of the server, which would note an error otherwise.
async fn close(idle: Vec<Idle>) {
    for idle in idle {
        let _ = timeout(Duration::from_secs(1), idle.connection.close()).await;
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        let idle = std::mem::take(self.idle.get_mut());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(close(idle));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let (Some(mut connection), Some(permit)) = (self.connection.take(), self.permit.take())
        else {
            return;
        };
        let sessions = Arc::clone(&self.sessions);
        // Without a runtime the connection is closed instead, which undoes as well.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let number = self.number;
        runtime.spawn(async move {
            let undo = async {
                // A statement that was given up may have left the connection out of step, which
                // shows here.
                connection.ping().await?;
                if sessions.kind == Kind::Transactions {
                    sqlx::raw_sql(ROLLBACK).execute(&mut connection).await?;
                }
                Ok::<_, sqlx::Error>(())
            };
            if timeout(sessions.settings.connect_timeout, undo).await.is_ok_and(|done| done.is_ok())
            {
                sessions.keep(connection, number);
            }
            drop(permit);
        });
    }
}

fn timed_out(text: &'static str) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
}
