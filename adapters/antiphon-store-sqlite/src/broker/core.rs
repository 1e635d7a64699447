//! What the parts of one open broker share: its threads, its clock, and who is to be woken.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use antiphon_core::Timestamp;
use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::{Notify, Semaphore, oneshot};

use super::member::Member;
use super::reader::Reader;
use super::writer::{Answer, Failure, Writer};
use crate::settings::Settings;

/// Messages that may wait for the writing thread at a time.
pub(super) const PUBLISHING_MAX: u32 = 65_536;

pub(super) struct Core {
    pub(super) path: PathBuf,
    pub(super) settings: Settings,
    writer: Writer,
    reader: Reader,
    /// Permits for messages on their way to the writing thread.
    pub(super) room: Semaphore,
    pub(super) topics: Mutex<HashMap<String, i64>>,
    members: Mutex<Vec<Weak<Member>>>,
    /// Something was committed that housekeeping may have to do with.
    pub(super) changed: AtomicBool,
    pub(super) housekeeping: Notify,
}

impl Core {
    pub(super) fn start(
        path: &Path,
        settings: Settings,
        writing: Connection,
        reading: Connection,
    ) -> std::io::Result<Arc<Self>> {
        // The reading thread has to be told of the core before there is one.
        let told: Arc<OnceLock<Weak<Self>>> = Arc::default();
        let seen = Arc::clone(&told);
        let reader = Reader::start(reading, path, move || match seen.get() {
            Some(core) => core.upgrade().map(|core| core.changed_elsewhere()).is_some(),
            None => true,
        })?;
        let core = Arc::new(Self {
            path: path.to_owned(),
            settings,
            writer: Writer::start(writing, path)?,
            reader,
            room: Semaphore::new(PUBLISHING_MAX as usize),
            topics: Mutex::default(),
            members: Mutex::default(),
            changed: AtomicBool::new(true),
            housekeeping: Notify::new(),
        });
        drop(told.set(Arc::downgrade(&core)));
        Ok(core)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.settings.clock.now()
    }

    /// See [`Writer::write`].
    pub(super) fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        then: impl FnOnce(&Result<T, Failure>) + Send + 'static,
    ) -> Answer<T> {
        self.writer.write(change, then)
    }

    /// See [`Reader::read`].
    pub(super) fn read(&self, job: impl FnOnce(&Connection) + Send + 'static) {
        self.reader.read(job);
    }

    /// Reads, and waits for what was found.
    pub(super) async fn query<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let (sender, receiver) = oneshot::channel();
        self.read(move |connection| drop(sender.send(read(connection))));
        match receiver.await {
            Ok(result) => result.map_err(|error| Failure::RolledBack(error.to_string())),
            Err(_) => Err(Failure::RolledBack("the reading thread has ended".into())),
        }
    }

    /// The number of a topic, if it was declared.
    pub(super) async fn topic(&self, name: &str) -> Result<Option<i64>, Failure> {
        if let Some(id) = self.topics.lock().get(name) {
            return Ok(Some(*id));
        }
        let wanted = name.to_owned();
        let found = self.query(move |connection| find(connection, "topic", &wanted)).await?;
        if let Some(id) = found {
            self.topics.lock().insert(name.to_owned(), id);
        }
        Ok(found)
    }

    pub(super) fn add_member(&self, member: &Arc<Member>) {
        self.members.lock().push(Arc::downgrade(member));
    }

    fn members(&self) -> Vec<Arc<Member>> {
        let mut members = self.members.lock();
        members.retain(|member| member.strong_count() > 0);
        members.iter().filter_map(Weak::upgrade).collect()
    }

    /// There are new messages in these topics.
    pub(super) fn published(&self, topics: &[i64]) {
        for member in self.members() {
            member.published(topics);
        }
    }

    /// Members of a group have come, gone, or given lanes back.
    pub(super) fn regrouped(&self, group: i64, but: &str) {
        for member in self.members() {
            member.regrouped(group, but);
        }
    }

    /// Housekeeping may have something to do.
    pub(super) fn keep_house(&self) {
        self.changed.store(true, Ordering::Release);
        self.housekeeping.notify_one();
    }

    fn changed_elsewhere(&self) {
        self.changed.store(true, Ordering::Release);
        for member in self.members() {
            member.changed();
        }
    }
}

/// The number of a topic or group.
pub(super) fn find(
    connection: &Connection,
    table: &'static str,
    name: &str,
) -> rusqlite::Result<Option<i64>> {
    use rusqlite::OptionalExtension as _;
    connection
        .prepare_cached(&format!("SELECT id FROM {table} WHERE name = ?"))?
        .query_row([name], |row| row.get(0))
        .optional()
}

/// The number of a topic, which is made if it is not there.
pub(super) fn declare_topic(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    if let Some(topic) = find(connection, "topic", name)? {
        return Ok(topic);
    }
    connection.execute("INSERT INTO topic (name) VALUES (?)", [name])?;
    let topic = connection.last_insert_rowid();
    connection.execute_batch(&super::database::create_log(topic))?;
    Ok(topic)
}
