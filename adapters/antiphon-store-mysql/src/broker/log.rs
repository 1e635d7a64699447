//! The port of the SQL broker over the connections.

use std::sync::Arc;

use antiphon_core::{Finding, MessageId, Timestamp};
use antiphon_messaging::{DeadLetter, Durability, GroupState, TopicState, Topology};
use antiphon_sqlbroker::{
    Change, Failure, Found, Inheritance, Job, Joinable, Log, Look, Sight, Taken, Topic, WaitingRow,
    Wanted, server,
};
use sqlx::Row;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::lanes::rows;
use super::reader::{Reader, failed};
use super::writer::Writing;
use super::{answers, dead, operate, scan, topology, trim};
use crate::location::Location;
use crate::server::Server;
use crate::settings::Settings;
use crate::sql::Sql;

pub(crate) struct MysqlLog {
    place: String,
    durability: Durability,
    /// Changes that somebody waits for.
    writer: mpsc::UnboundedSender<Job>,
    /// Housekeeping, which holds nobody up.
    side: mpsc::UnboundedSender<Job>,
    reader: Arc<Reader>,
    runtime: Handle,
}

impl MysqlLog {
    /// Starts the tasks that have the connections.
    pub(super) fn start(location: &Location, settings: &Settings, server: &Server) -> Self {
        let runtime = Handle::current();
        let write = || {
            let (sender, jobs) = mpsc::unbounded_channel();
            let writing = Writing {
                options: location.options(),
                settings: settings.clone(),
                packet_max: server.packet_max(),
            };
            runtime.spawn(server::write(writing, jobs));
            sender
        };
        Self {
            place: location.place().to_owned(),
            durability: server.durability(),
            writer: write(),
            side: write(),
            reader: Arc::new(Reader::new(location.options(), settings.clone())),
            runtime,
        }
    }
}

impl Log for MysqlLog {
    fn durability(&self) -> Durability {
        self.durability
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
            let found = reader
                .read(|connection| Box::pin(async move { scan::scan(connection, &asked).await }));
            let found = found.await;
            then(wanted, found);
        });
    }

    async fn topic(&self, name: &str) -> Result<Option<i64>, Failure> {
        let name = name.to_owned();
        let read = self
            .reader
            .read(|connection| Box::pin(async move { topology::topic(connection, &name).await }));
        read.await
    }

    async fn group(&self, name: &str) -> Result<Option<i64>, Failure> {
        let name = name.to_owned();
        let read = self
            .reader
            .read(|connection| Box::pin(async move { topology::group(connection, &name).await }));
        read.await
    }

    async fn is_declared(&self, wanted: &Topology) -> Result<bool, Failure> {
        let wanted = wanted.clone();
        let read = self.reader.read(|connection| {
            Box::pin(async move { topology::is_declared(connection, &wanted).await })
        });
        read.await
    }

    async fn joinable(&self, group: &str, topics: &[String]) -> Result<Option<Joinable>, Failure> {
        let (group, topics) = (group.to_owned(), topics.to_vec());
        let read = self.reader.read(|connection| {
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
        let read = self.reader.read(|connection| {
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
        let mut sql = Sql::default();
        scan::ask_waiting(&mut sql, group, &lanes);
        let answers = self.reader.ask(sql).await?;
        scan::read_waiting(&answers, &topics, &lanes).map_err(failed)
    }

    async fn first_due(&self) -> Result<Option<Timestamp>, Failure> {
        let answers = self.reader.ask(Sql::new(trim::FIRST_DUE)).await?;
        let due = rows(&answers, 0).first().map(|row| row.try_get::<Option<i64>, _>(0));
        Ok(due.transpose().map_err(failed)?.flatten().map(Timestamp::from_micros))
    }

    async fn is_removable(&self) -> Result<bool, Failure> {
        let answers = self.reader.ask(trim::ask_removable()).await?;
        Ok(!trim::read_removable(&answers).map_err(failed)?.is_empty())
    }

    async fn letters(
        &self,
        group: Option<String>,
        after: (String, [u8; 16]),
    ) -> Result<Vec<DeadLetter>, Failure> {
        let read = self.reader.read(|connection| {
            Box::pin(async move { dead::page(connection, group.as_deref(), &after).await })
        });
        read.await
    }

    async fn letter(&self, group: &str, id: MessageId) -> Result<Option<DeadLetter>, Failure> {
        let group = group.to_owned();
        let read = self
            .reader
            .read(|connection| Box::pin(async move { dead::one(connection, &group, id).await }));
        read.await
    }

    async fn has_answers(&self, addresses: Vec<String>) -> Result<bool, Failure> {
        let answers = self.reader.ask(answers::ask(&addresses)).await?;
        Ok(!rows(&answers, 0).is_empty())
    }

    async fn topics(&self) -> Result<Vec<TopicState>, Failure> {
        let answers = self.reader.ask(Sql::new(operate::TOPICS)).await?;
        operate::read_topics(&answers).map_err(failed)
    }

    async fn groups(&self) -> Result<Vec<GroupState>, Failure> {
        self.reader.read(|connection| Box::pin(operate::groups(connection))).await
    }

    async fn findings(&self) -> Vec<Finding> {
        let server = self.reader.read(|connection| Box::pin(Server::ask(connection))).await;
        operate::findings(&self.place, server)
    }
}

impl Look for MysqlLog {
    async fn look(&self) -> Result<Sight, Failure> {
        let sql = Sql::new(
            "SELECT id, head FROM antiphon_mq_topic; \
             SELECT id, stirred + regrouped FROM antiphon_mq_group; \
             SELECT MIN(due) FROM antiphon_mq_delayed",
        );
        let answers = self.reader.ask(sql).await?;
        let pairs = |index: usize| -> Result<Vec<(i64, i64)>, sqlx::Error> {
            let rows = rows(&answers, index).iter();
            rows.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
        };
        let due = rows(&answers, 2).first().map(|row| row.try_get::<Option<i64>, _>(0));
        Ok(Sight {
            heads: pairs(0).map_err(failed)?,
            stirred: pairs(1).map_err(failed)?,
            due: due.transpose().map_err(failed)?.flatten().map(Timestamp::from_micros),
        })
    }
}
