//! The task that writes to a server: changes that are handed in at the same time go into one
//! transaction, over one connection.
//!
//! A commit costs the same for one change as for hundreds, so while one runs, the next ones gather.
//! A transaction that the server has undone because of others is made again, since changes are
//! data; one that it refuses is made again change by change, so that a bad one harms itself only.
//! When the connection is lost while committing, nobody knows, and that is what everybody hears.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::change::{Change, Failure, Job, Outcome};

/// Changes and bytes of messages that go into one transaction at most (one change more).
const GATHER_MAX: usize = 512;
const GATHER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long a transaction may take before its connection is given up.
const TRANSACTION_MAX: Duration = Duration::from_secs(10);
/// How often a transaction that others were in the way of is made again.
const AGAIN_MAX: u32 = 10;
/// A connection that was silent for longer is tried before it is used: what is found out while
/// committing leaves everybody in doubt.
const TRUST: Duration = Duration::from_millis(250);
/// The pause between attempts to connect, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Why a transaction was not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Undone because others were in the way; the same may work the next time.
    #[error("undone: {0}")]
    Again(String),
    /// Undone because the server refuses something in it.
    #[error("refused: {0}")]
    Refused(String),
    /// The connection is gone, and the transaction with it: it was not yet being committed.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The connection was lost while it was being committed.
    #[error("the connection was lost while committing: {0}")]
    Unknown(String),
}

/// A server that changes are written to.
pub trait Server: Send + Sync + 'static {
    /// A connection to it.
    type Connection: Send + 'static;

    /// Connects. Should give up by itself after some seconds.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, String>> + Send;

    /// Whether a connection that was silent for a while still works.
    fn answers(&self, connection: &mut Self::Connection) -> impl Future<Output = bool> + Send;

    /// Makes changes in one transaction and answers with an outcome for each. After an error the
    /// transaction is over: rolled back, except after [`Trouble::Unknown`]. Dropping the future
    /// leaves the connection useless.
    fn apply(
        &self,
        connection: &mut Self::Connection,
        changes: &[&Change],
    ) -> impl Future<Output = Result<Vec<Outcome>, Trouble>> + Send;
}

/// Makes changes until nobody can hand in any more.
pub async fn write<S: Server>(server: S, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let mut writer = Writer { server, connection: None, pause: None, connect_at: Instant::now() };
    let mut gathered = Vec::new();
    while let Some(job) = jobs.recv().await {
        let mut bytes = weight(&job.change);
        gathered.push(job);
        while gathered.len() < GATHER_MAX
            && bytes < GATHER_BYTES_MAX
            && let Ok(job) = jobs.try_recv()
        {
            bytes += weight(&job.change);
            gathered.push(job);
        }
        writer.make(&mut gathered).await;
    }
}

/// The bytes of messages in a change, roughly.
fn weight(change: &Change) -> usize {
    match change {
        Change::Publish(rows) => rows.iter().map(|row| row.head.len() + row.body.len()).sum(),
        Change::BuryForeign { message, .. } | Change::Answer { message, .. } => message.size(),
        _ => 0,
    }
}

struct Writer<S: Server> {
    server: S,
    /// With when it was used last.
    connection: Option<(S::Connection, Instant)>,
    /// The pause before the next attempt to connect, after one that has failed.
    pause: Option<Duration>,
    connect_at: Instant,
}

impl<S: Server> Writer<S> {
    /// Makes what was gathered, and tells what came of it.
    async fn make(&mut self, jobs: &mut Vec<Job>) {
        let changes: Vec<&Change> = jobs.iter().map(|job| &job.change).collect();
        let outcomes = match self.transaction(&changes).await {
            Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
            // With others, one of them may be what is refused.
            Err(Trouble::Refused(_)) if changes.len() > 1 => self.one_by_one(&changes).await,
            Err(trouble) => vec![Err(failure(trouble)); changes.len()],
        };
        debug_assert_eq!(outcomes.len(), jobs.len(), "an outcome for each change");
        for (job, outcome) in jobs.drain(..).zip(outcomes) {
            job.finish(outcome);
        }
    }

    async fn one_by_one(&mut self, changes: &[&Change]) -> Vec<Result<Outcome, Failure>> {
        let mut outcomes = Vec::with_capacity(changes.len());
        for change in changes {
            let made = self.transaction(&[*change]).await;
            outcomes.push(match made.map(|mut outcomes| outcomes.pop()) {
                Ok(Some(outcome)) => Ok(outcome),
                Ok(None) => Err(Failure::Unknown("the database has not answered".into())),
                Err(trouble) => Err(failure(trouble)),
            });
        }
        outcomes
    }

    /// One transaction, as often as it takes.
    async fn transaction(&mut self, changes: &[&Change]) -> Result<Vec<Outcome>, Trouble> {
        let mut again = 0;
        loop {
            let fresh = self.connection.is_none();
            let mut connection = match self.tried().await {
                Some(connection) => connection,
                None => self.connect().await.map_err(Trouble::Lost)?,
            };
            let applied = self.server.apply(&mut connection, changes);
            // The connection is only kept when it is at rest.
            let applied = timeout(TRANSACTION_MAX, applied).await.unwrap_or_else(|_| {
                Err(Trouble::Unknown(format!("no answer for {TRANSACTION_MAX:?}")))
            });
            match applied {
                Ok(outcomes) => {
                    self.connection = Some((connection, Instant::now()));
                    return Ok(outcomes);
                }
                Err(Trouble::Again(reason)) if again < AGAIN_MAX => {
                    tracing::debug!(reason, "a transaction of the broker is made again");
                    self.connection = Some((connection, Instant::now()));
                    again += 1;
                    let jitter = fastrand::u64(0..=1 << again.min(6));
                    tokio::time::sleep(Duration::from_millis(jitter)).await;
                }
                // An idle connection may have ended long ago; on a new one it is tried once more.
                Err(Trouble::Lost(reason)) if !fresh => {
                    tracing::debug!(reason, "the broker connects again");
                }
                Err(trouble @ (Trouble::Again(_) | Trouble::Refused(_))) => {
                    self.connection = Some((connection, Instant::now()));
                    return Err(trouble);
                }
                Err(trouble) => return Err(trouble),
            }
        }
    }

    /// The open connection, if it still works.
    async fn tried(&mut self) -> Option<S::Connection> {
        let (mut connection, since) = self.connection.take()?;
        if since.elapsed() < TRUST {
            return Some(connection);
        }
        let answers = timeout(TRANSACTION_MAX, self.server.answers(&mut connection)).await;
        answers.unwrap_or(false).then_some(connection)
    }

    /// Connects, not more often than it makes sense.
    async fn connect(&mut self) -> Result<S::Connection, String> {
        sleep_until(self.connect_at).await;
        match self.server.connect().await {
            Ok(connection) => {
                if self.pause.take().is_some() {
                    tracing::info!("the broker's database answers again");
                }
                Ok(connection)
            }
            Err(reason) => {
                let pause = self.pause.map_or(PAUSE_MIN, |pause| (pause * 2).min(PAUSE_MAX));
                if self.pause.is_none() {
                    tracing::warn!(reason, "the broker's database cannot be reached");
                }
                self.pause = Some(pause);
                self.connect_at = Instant::now() + pause.mul_f64(0.5 + fastrand::f64());
                Err(reason)
            }
        }
    }
}

fn failure(trouble: Trouble) -> Failure {
    match trouble {
        Trouble::Again(reason) | Trouble::Refused(reason) | Trouble::Lost(reason) => {
            Failure::NotMade(reason)
        }
        Trouble::Unknown(reason) => Failure::Unknown(reason),
    }
}

#[cfg(test)]
mod tests;
