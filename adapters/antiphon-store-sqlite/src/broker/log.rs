//! The port of the SQL broker over the two threads.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use antiphon_core::{Finding, MessageId, Timestamp};
use antiphon_messaging::{DeadLetter, Durability, GroupState, TopicState, Topology};
use antiphon_sqlbroker::{
    Ear, Failure, Found, Heard, Inheritance, Job, Joinable, Log, Taken, Topic, WaitingRow, Wanted,
};
use rusqlite::{Connection, Result as SqlResult};
use tokio::sync::oneshot;

use super::reader::Reader;
use super::writer::Writer;
use super::{answers, dead, operate, scan, topology, trim};
use crate::settings::Synchronous;

pub(crate) struct SqliteLog {
    path: PathBuf,
    synchronous: Synchronous,
    writer: Writer,
    reader: Reader,
}

impl SqliteLog {
    pub(super) fn start(
        path: &Path,
        synchronous: Synchronous,
        writing: Connection,
        reading: Connection,
        ear: Ear,
    ) -> std::io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            synchronous,
            writer: Writer::start(writing, path)?,
            reader: Reader::start(reading, path, move || ear.hear(Heard::Anything))?,
        })
    }

    /// Reads, and waits for what was found.
    async fn query<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> SqlResult<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let (sender, receiver) = oneshot::channel();
        self.reader.read(move |connection| drop(sender.send(read(connection))));
        match receiver.await {
            Ok(result) => result.map_err(not_made),
            Err(_) => Err(Failure::NotMade("the reading thread has ended".into())),
        }
    }
}

pub(super) fn not_made(error: rusqlite::Error) -> Failure {
    Failure::NotMade(error.to_string())
}

impl Log for SqliteLog {
    fn durability(&self) -> Durability {
        self.synchronous.durability()
    }

    fn write(&self, job: Job) {
        self.writer.write(job);
    }

    fn scan(
        &self,
        wanted: Wanted,
        then: impl FnOnce(Wanted, Result<Found, Failure>) + Send + 'static,
    ) {
        self.reader.read(move |connection| {
            let found = scan::scan(connection, &wanted).map_err(not_made);
            then(wanted, found);
        });
    }

    async fn topic(&self, name: &str) -> Result<Option<i64>, Failure> {
        let name = name.to_owned();
        self.query(move |connection| topology::find(connection, "topic", &name)).await
    }

    async fn group(&self, name: &str) -> Result<Option<i64>, Failure> {
        let name = name.to_owned();
        self.query(move |connection| topology::find(connection, "grp", &name)).await
    }

    async fn is_declared(&self, wanted: &Topology) -> Result<bool, Failure> {
        let wanted = wanted.clone();
        self.query(move |connection| topology::is_declared(connection, &wanted)).await
    }

    async fn joinable(&self, group: &str, topics: &[String]) -> Result<Option<Joinable>, Failure> {
        let (group, topics) = (group.to_owned(), topics.to_vec());
        self.query(move |connection| topology::joinable(connection, &group, &topics)).await
    }

    async fn inherit(
        &self,
        group: i64,
        topics: Arc<[Topic]>,
        taken: Arc<[Taken]>,
    ) -> Result<Vec<Inheritance>, Failure> {
        self.query(move |connection| {
            taken.iter().map(|taken| scan::inherit(connection, group, &topics, taken)).collect()
        })
        .await
    }

    async fn waiting(
        &self,
        group: i64,
        topics: Arc<[Topic]>,
        lanes: Vec<u32>,
    ) -> Result<Vec<Vec<WaitingRow>>, Failure> {
        self.query(move |connection| {
            lanes.iter().map(|lane| scan::waiting(connection, group, &topics, *lane)).collect()
        })
        .await
    }

    async fn first_due(&self) -> Result<Option<Timestamp>, Failure> {
        self.query(trim::first_due).await
    }

    async fn is_removable(&self) -> Result<bool, Failure> {
        self.query(|connection| Ok(!trim::removable(connection)?.is_empty())).await
    }

    async fn letters(
        &self,
        group: Option<String>,
        after: (String, [u8; 16]),
    ) -> Result<Vec<DeadLetter>, Failure> {
        self.query(move |connection| dead::page(connection, group, &after)).await
    }

    async fn letter(&self, group: &str, id: MessageId) -> Result<Option<DeadLetter>, Failure> {
        let group = group.to_owned();
        self.query(move |connection| dead::one(connection, &group, id)).await
    }

    async fn has_answers(&self, addresses: Vec<String>) -> Result<bool, Failure> {
        self.query(move |connection| answers::are_there(connection, &addresses)).await
    }

    async fn topics(&self) -> Result<Vec<TopicState>, Failure> {
        self.query(operate::topics).await
    }

    async fn groups(&self) -> Result<Vec<GroupState>, Failure> {
        self.query(operate::groups).await
    }

    async fn findings(&self) -> Vec<Finding> {
        operate::findings(&self.path, self.synchronous, self.query(operate::facts).await)
    }
}
