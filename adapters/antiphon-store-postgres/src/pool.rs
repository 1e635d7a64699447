//! Connections that take turns.
//!
//! The driver's own pool asks the server for a sign of life each time a connection comes back, in a
//! task of its own: with short transactions that is a round trip and a switch of tasks for each.
//! Here a connection whose work ended in order goes straight back, the last one first, and whoever
//! finds that a connection has died meanwhile takes another. A connection whose work was cut, or
//! ended in trouble, is cleaned first, or closed.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use antiphon_outbox::StoreError;
use futures_util::FutureExt;
use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgTransactionManager};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use sqlx_core::transaction::TransactionManager;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::connect::{connect, within};
use crate::error::{State, state, store_error};
use crate::settings::Settings;

/// A connection that was not used for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// A connection that is so old is closed: what a server process remembers only grows.
const AGE_MAX: Duration = Duration::from_secs(3_600);
/// How long the end of an empty transaction waits for company.
const SEND_WAIT: Duration = Duration::from_millis(10);
/// How long undoing a transaction that was dropped may take before its connection is closed.
const CLEAN_MAX: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Pool {
    options: PgConnectOptions,
    connect_timeout: Duration,
    acquire_timeout: Duration,
    /// What a connection remembers for the transactions on it, as `PREPARE` statements.
    prepare: String,
    turns: Arc<Semaphore>,
    idle: Mutex<Vec<Kept>>,
    /// A task will soon send what idle connections have to send.
    sends: AtomicBool,
}

/// A connection and how old it is.
#[derive(Debug)]
struct Kept {
    connection: PgConnection,
    made: Instant,
    used: Instant,
    /// It remembers what its transactions execute.
    prepared: bool,
    /// The end of an empty transaction waits to be sent: best together with what comes next.
    unsent: bool,
}

/// The right to use a connection, and the connection.
#[derive(Debug)]
pub(crate) struct Turn {
    pool: Arc<Pool>,
    /// `None` once it was given up, which consumes the turn.
    kept: Option<Kept>,
    /// Nothing is under way and no transaction open: it may go back as it is.
    clean: bool,
    /// `None` while it moves on to the task that cleans the connection.
    permit: Option<OwnedSemaphorePermit>,
}

impl Pool {
    pub(crate) fn new(
        options: PgConnectOptions,
        settings: &Settings,
        connections_max: u32,
        prepare: String,
    ) -> Arc<Self> {
        let turns = usize::try_from(connections_max.max(1)).unwrap_or(1);
        Arc::new(Self {
            options,
            connect_timeout: settings.connect_timeout,
            acquire_timeout: settings.acquire_timeout,
            prepare,
            turns: Arc::new(Semaphore::new(turns)),
            idle: Mutex::new(Vec::new()),
            sends: AtomicBool::new(false),
        })
    }

    /// Waits for a connection and opens a transaction on it.
    pub(crate) async fn begin(self: &Arc<Self>) -> Result<Turn, StoreError> {
        let give_up = Instant::now() + self.acquire_timeout;
        let permit = self.permit(give_up).await?;
        let kept = within(give_up - Instant::now(), self.connection_with(true)).await;
        Ok(self.turn(kept.map_err(store_error("begin"))?, permit))
    }

    /// Waits for a connection, for statements that each are a transaction of their own. Whoever has
    /// had the answer to all of them says [`Turn::done`].
    pub(crate) async fn checkout(self: &Arc<Self>) -> Result<Turn, StoreError> {
        let give_up = Instant::now() + self.acquire_timeout;
        let permit = self.permit(give_up).await?;
        let kept = self.connection_with(false).await.map_err(store_error("connect"))?;
        Ok(self.turn(kept, permit))
    }

    async fn permit(&self, give_up: Instant) -> Result<OwnedSemaphorePermit, StoreError> {
        tokio::time::timeout_at(give_up, Arc::clone(&self.turns).acquire_owned())
            .await
            .map_err(|_| StoreError::Busy("no connection became free in time".into()))?
            .map_err(|closed| StoreError::Failed { action: "begin", source: closed.into() })
    }

    fn turn(self: &Arc<Self>, kept: Kept, permit: OwnedSemaphorePermit) -> Turn {
        Turn { pool: Arc::clone(self), kept: Some(kept), clean: false, permit: Some(permit) }
    }

    /// A connection that works as far as known, with a transaction open if asked for. While the
    /// future is not ready the connection is nobody's: dropping the future closes it.
    async fn connection_with(&self, transaction: bool) -> Result<Kept, sqlx::Error> {
        loop {
            let idle = self.idle.lock().pop();
            let was_idle = idle.is_some();
            let mut kept = match idle {
                Some(kept) => kept,
                None => self.connect().await?,
            };
            kept.unsent = false;
            if !transaction {
                return Ok(kept);
            }
            match self.open(&mut kept).await {
                Ok(()) => return Ok(kept),
                // The server has ended it while nobody used it: so it may have the others.
                Err(error) if was_idle && !is_answer(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn open(&self, kept: &mut Kept) -> Result<(), sqlx::Error> {
        if !kept.prepared {
            let statements = sqlx::raw_sql(AssertSqlSafe(self.prepare.clone()));
            statements.execute(&mut kept.connection).await?;
            kept.prepared = true;
        }
        PgTransactionManager::begin(&mut kept.connection, None).await
    }

    async fn connect(&self) -> Result<Kept, sqlx::Error> {
        let connection = connect(&self.options, self.connect_timeout).await?;
        let now = Instant::now();
        Ok(Kept { connection, made: now, used: now, prepared: false, unsent: false })
    }

    fn put_back(self: &Arc<Self>, mut kept: Kept) {
        let now = Instant::now();
        if now - kept.made > AGE_MAX {
            return;
        }
        kept.used = now;
        if kept.unsent && !self.sends.swap(true, Ordering::AcqRel) {
            self.send_later();
        }
        let mut idle = self.idle.lock();
        idle.push(kept);
        // The first one is the one that was not used for the longest time.
        let surplus = idle.first().filter(|kept| now - kept.used > IDLE_MAX).is_some();
        let surplus = surplus.then(|| idle.remove(0));
        drop(idle);
        drop(surplus);
    }

    /// Sends what idle connections have to send, unless they are used soon. The answers are read by
    /// whoever uses them next.
    fn send_later(self: &Arc<Self>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let pool = Arc::clone(self);
        runtime.spawn(async move {
            tokio::time::sleep(SEND_WAIT).await;
            pool.sends.store(false, Ordering::Release);
            for kept in pool.idle.lock().iter_mut().filter(|kept| kept.unsent) {
                kept.unsent = false;
                let _ = kept.connection.flush().now_or_never();
            }
        });
    }
}

/// Whether the error is what a living server answers.
pub(crate) fn is_answer(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(_)) && state(error) != State::Gone
}

impl Turn {
    /// Everything that was asked is answered, and no transaction is open.
    ///
    /// The driver may count an empty transaction all the same, which the server was asked to open so
    /// that both agree: undoing it needs no answer, and goes with what comes next.
    pub(crate) fn done(mut self) {
        let connection = &mut *self;
        if PgTransactionManager::get_transaction_depth(connection) > 0 {
            PgTransactionManager::start_rollback(connection);
            if let Some(kept) = &mut self.kept {
                kept.unsent = true;
            }
        }
        self.clean = true;
    }

    /// Takes in how a statement outside of a transaction ended: after the answer of a living
    /// server the connection goes back, else it is closed, and with it those that wait for work,
    /// which have ended for the same reason.
    pub(crate) fn ended<T>(mut self, answer: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        match &answer {
            Err(error) if !is_answer(error) => {
                self.kept = None;
                self.pool.idle.lock().clear();
            }
            _ => self.done(),
        }
        answer
    }

    /// Gives the connection up: what it has open is undone when the server sees that it is closed.
    pub(crate) fn discard(mut self) {
        self.kept = None;
    }
}

impl Deref for Turn {
    type Target = PgConnection;
    fn deref(&self) -> &PgConnection {
        match &self.kept {
            Some(kept) => &kept.connection,
            None => unreachable!("whatever gives the connection up consumes the turn"),
        }
    }
}

impl DerefMut for Turn {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match &mut self.kept {
            Some(kept) => &mut kept.connection,
            None => unreachable!("whatever gives the connection up consumes the turn"),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(kept) = self.kept.take() else { return };
        if self.clean {
            self.pool.put_back(kept);
            return;
        }
        // Outside of a runtime the connection is closed, which undoes its transaction as well.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (pool, permit) = (Arc::clone(&self.pool), self.permit.take());
        runtime.spawn(async move {
            if let Some(kept) = cleaned(kept).await {
                pool.put_back(kept);
            }
            drop(permit);
        });
    }
}

/// Undoes what is open. `None` when the server does not say in time that it has.
async fn cleaned(mut kept: Kept) -> Option<Kept> {
    let connection = &mut kept.connection;
    if PgTransactionManager::get_transaction_depth(connection) == 0 {
        // Whatever is under way, nobody knows what state it leaves.
        return None;
    }
    while PgTransactionManager::get_transaction_depth(connection) > 0 {
        PgTransactionManager::start_rollback(connection);
    }
    match tokio::time::timeout(CLEAN_MAX, connection.ping()).await {
        Ok(Ok(())) => Some(kept),
        _ => None,
    }
}
