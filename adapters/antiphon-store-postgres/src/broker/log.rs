//! The port of the SQL broker over the connections.

use std::sync::Arc;

use antiphon_core::{BoxFuture, Finding, MessageId, Timestamp};
use antiphon_messaging::{DeadLetter, Durability, GroupState, TopicState, Topology};
use antiphon_sqlbroker::{
    Change, Ear, Failure, Found, Inheritance, Job, Joinable, Log, Look, Ring, Sight, Taken, Topic,
    WaitingRow, Wanted, server,
};
use sqlx::{PgConnection, Row};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use super::bell::Bell;
use super::reader::Reader;
use super::writer::Writing;
use super::{answers, dead, operate, scan, topology, trim};
use crate::location::Location;
use crate::settings::{Settings, SynchronousCommit};

/// Every statement here finds its rows by an index. What the planner believes of tables that are
/// empty at one moment and full at the next must not make it read them whole.
///
/// Nothing is thought about in a transaction: when the next statement does not come, the network or
/// the process stands still, and what is locked must be free again before the leases are over.
const SESSION: [(&str, &str); 6] = [
    ("idle_in_transaction_session_timeout", "2000"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
];

pub(crate) struct PostgresLog {
    shown: String,
    commit: SynchronousCommit,
    /// Changes that somebody waits for.
    writer: mpsc::UnboundedSender<Job>,
    /// Housekeeping, which holds nobody up.
    side: mpsc::UnboundedSender<Job>,
    reader: Arc<Reader>,
    bell: Arc<Bell>,
    bells: [AbortHandle; 2],
    runtime: Handle,
}

impl PostgresLog {
    /// Starts the tasks that have the connections. `rung` is told when something may not have been
    /// heard.
    pub(super) fn start(
        location: &Location,
        settings: &Settings,
        ear: Ear,
        rung: Arc<Notify>,
    ) -> Self {
        let runtime = Handle::current();
        let options = location.options.clone().options(SESSION);
        let relaxed = location.relaxed().options(SESSION);
        let connect_timeout = settings.connect_timeout;
        let write = |options| {
            let (sender, jobs) = mpsc::unbounded_channel();
            runtime.spawn(server::write(Writing { options, connect_timeout }, jobs));
            sender
        };
        let bell: Arc<Bell> = Arc::default();
        let tell = Arc::clone(&bell).tell(relaxed.clone(), connect_timeout);
        let listen = Arc::clone(&bell).listen(location.options.clone(), ear, rung);
        Self {
            shown: location.shown.clone(),
            commit: settings.synchronous_commit,
            writer: write(options.clone()),
            side: write(options.clone()),
            reader: Arc::new(Reader::new(options, connect_timeout)),
            bell,
            bells: [runtime.spawn(tell).abort_handle(), runtime.spawn(listen).abort_handle()],
            runtime,
        }
    }
}

impl Drop for PostgresLog {
    fn drop(&mut self) {
        for bell in &self.bells {
            bell.abort();
        }
    }
}

/// The read of one connection, as the reader wants it.
type Reading<'c, T> = BoxFuture<'c, Result<T, sqlx::Error>>;

impl Log for PostgresLog {
    fn durability(&self) -> Durability {
        self.commit.durability()
    }

    fn write(&self, job: Job) {
        let queue = match job.change {
            Change::Trim | Change::MoveDue { .. } | Change::ForgetAnswers { .. } => &self.side,
            _ => &self.writer,
        };
        // When the task is gone, the job is dropped, and whoever waits hears that.
        drop(queue.send(job));
    }

    fn scan(
        &self,
        wanted: Wanted,
        then: impl FnOnce(Wanted, Result<Found, Failure>) + Send + 'static,
    ) {
        let reader = Arc::clone(&self.reader);
        self.runtime.spawn(async move {
            let asked = wanted.clone();
            let found = reader.read(move |connection| -> Reading<'_, Found> {
                Box::pin(async move { scan::scan(connection, &asked).await })
            });
            let found = found.await;
            then(wanted, found);
        });
    }

    fn ring(&self, what: Ring<'_>) {
        self.bell.ring(what);
    }

    async fn topic(&self, name: &str) -> Result<Option<i64>, Failure> {
        let name = name.to_owned();
        let read = self.reader.read(move |connection| -> Reading<'_, Option<i64>> {
            Box::pin(async move { topology::topic(connection, &name).await })
        });
        read.await
    }

    async fn group(&self, name: &str) -> Result<Option<i64>, Failure> {
        let name = name.to_owned();
        let read = self.reader.read(move |connection| -> Reading<'_, Option<i64>> {
            Box::pin(async move { topology::group(connection, &name).await })
        });
        read.await
    }

    async fn is_declared(&self, wanted: &Topology) -> Result<bool, Failure> {
        let wanted = wanted.clone();
        let read = self.reader.read(move |connection| -> Reading<'_, bool> {
            Box::pin(async move { topology::is_declared(connection, &wanted).await })
        });
        read.await
    }

    async fn joinable(&self, group: &str, topics: &[String]) -> Result<Option<Joinable>, Failure> {
        let (group, topics) = (group.to_owned(), topics.to_vec());
        let read = self.reader.read(move |connection| -> Reading<'_, Option<Joinable>> {
            Box::pin(async move { topology::joinable(connection, &group, &topics).await })
        });
        read.await
    }

    async fn inherit(
        &self,
        group: i64,
        topics: Arc<[Topic]>,
        taken: Arc<[Taken]>,
    ) -> Result<Vec<Inheritance>, Failure> {
        let read = self.reader.read(move |connection| -> Reading<'_, Vec<Inheritance>> {
            Box::pin(async move { scan::inherit(connection, group, &topics, &taken).await })
        });
        read.await
    }

    async fn waiting(
        &self,
        group: i64,
        topics: Arc<[Topic]>,
        lanes: Vec<u32>,
    ) -> Result<Vec<Vec<WaitingRow>>, Failure> {
        let read = self.reader.read(move |connection| -> Reading<'_, Vec<Vec<WaitingRow>>> {
            Box::pin(async move { scan::waiting(connection, group, &topics, &lanes).await })
        });
        read.await
    }

    async fn first_due(&self) -> Result<Option<Timestamp>, Failure> {
        self.reader.read(|connection| Box::pin(trim::first_due(connection))).await
    }

    async fn is_removable(&self) -> Result<bool, Failure> {
        let read = self.reader.read(|connection| -> Reading<'_, bool> {
            Box::pin(async move { Ok(!trim::removable(connection).await?.is_empty()) })
        });
        read.await
    }

    async fn letters(
        &self,
        group: Option<String>,
        after: (String, [u8; 16]),
    ) -> Result<Vec<DeadLetter>, Failure> {
        let read = self.reader.read(move |connection| -> Reading<'_, Vec<DeadLetter>> {
            Box::pin(async move { dead::page(connection, group.as_deref(), &after).await })
        });
        read.await
    }

    async fn letter(&self, group: &str, id: MessageId) -> Result<Option<DeadLetter>, Failure> {
        let group = group.to_owned();
        let read = self.reader.read(move |connection| -> Reading<'_, Option<DeadLetter>> {
            Box::pin(async move { dead::one(connection, &group, id).await })
        });
        read.await
    }

    async fn has_answers(&self, addresses: Vec<String>) -> Result<bool, Failure> {
        let read = self.reader.read(move |connection| -> Reading<'_, bool> {
            Box::pin(async move { answers::are_there(connection, &addresses).await })
        });
        read.await
    }

    async fn topics(&self) -> Result<Vec<TopicState>, Failure> {
        self.reader.read(|connection| Box::pin(operate::topics(connection))).await
    }

    async fn groups(&self) -> Result<Vec<GroupState>, Failure> {
        self.reader.read(|connection| Box::pin(operate::groups(connection))).await
    }

    async fn findings(&self) -> Vec<Finding> {
        let facts = self.reader.read(|connection| Box::pin(operate::facts(connection))).await;
        operate::findings(&self.shown, self.commit, facts)
    }
}

impl Look for PostgresLog {
    async fn look(&self) -> Result<Sight, Failure> {
        self.reader.read(|connection| Box::pin(look(connection))).await
    }
}

async fn look(connection: &mut PgConnection) -> Result<Sight, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT 0, id, head FROM antiphon_mq_topic
         UNION ALL SELECT 1, id, stirred + regrouped FROM antiphon_mq_group
         UNION ALL (SELECT 2, 0, due FROM antiphon_mq_delayed ORDER BY due, n LIMIT 1)",
    )
    .fetch_all(connection)
    .await?;
    let mut sight = Sight::default();
    for row in &rows {
        let (id, value): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
        match row.try_get(0)? {
            0 => sight.heads.push((id, value)),
            1 => sight.stirred.push((id, value)),
            _ => sight.due = Some(Timestamp::from_micros(value)),
        }
    }
    Ok(sight)
}
