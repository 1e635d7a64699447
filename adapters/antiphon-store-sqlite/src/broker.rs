//! The SQL broker in one SQLite file that the processes of a machine share: its
//! [`Log`](antiphon_sqlbroker::Log), with a thread that writes and one that reads.

mod answers;
mod database;
mod dead;
mod log;
mod operate;
mod publish;
mod reader;
mod rows;
mod scan;
mod topology;
mod trim;
mod writer;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use antiphon_messaging::{
    Broker, Capabilities, DeadLetters, Inbox, Message, Operate, PublishError, Receipt, Source,
    SubscribeError, Subscription, Topology,
};
use antiphon_sqlbroker::{Ear, SqlBroker};

use self::log::SqliteLog;
use crate::error::{OpenError, open_error};
use crate::location;
use crate::settings::Settings;

/// A broker in one SQLite file. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct SqliteBroker {
    broker: SqlBroker<SqliteLog>,
    path: PathBuf,
}

impl SqliteBroker {
    /// Opens the broker at `location`, a path or a `sqlite:` URL, and makes it if it is not there,
    /// with its folder. Must be called in a Tokio runtime, which then keeps house for it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(location: &str, settings: Settings) -> Result<Self, OpenError> {
        let location = location.to_owned();
        let clock = settings.clock.clone();
        let ear = Ear::default();
        let told = ear.clone();
        let opened = tokio::task::spawn_blocking(move || open(&location, &settings, told)).await;
        let (log, path) = opened.map_err(|error| open_error("".as_ref(), None, error.into()))??;
        Ok(Self { broker: SqlBroker::start(log, &ear, clock), path })
    }
}

fn open(location: &str, settings: &Settings, ear: Ear) -> Result<(SqliteLog, PathBuf), OpenError> {
    let path = location::prepare(location)?;
    let writing = database::connect(&path, settings)?;
    database::prepare(&writing, &path)?;
    let reading = database::connect(&path, settings)?;
    let log = SqliteLog::start(&path, settings.synchronous, writing, reading, ear)
        .map_err(|error| open_error(&path, None, error.into()))?;
    Ok((log, path))
}

impl Broker for SqliteBroker {
    fn capabilities(&self) -> Capabilities {
        self.broker.capabilities()
    }

    async fn declare(&self, topology: &Topology) -> Result<(), SubscribeError> {
        self.broker.declare(topology).await
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<Receipt, PublishError>> {
        self.broker.publish(batch).await
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Box<dyn Source>, SubscribeError> {
        self.broker.subscribe(subscription).await
    }

    async fn inbox(&self) -> Result<Box<dyn Inbox>, SubscribeError> {
        self.broker.inbox().await
    }

    async fn answer(&self, address: &str, message: Message) -> Result<(), PublishError> {
        self.broker.answer(address, message).await
    }

    fn operate(&self) -> Option<Arc<dyn Operate>> {
        self.broker.operate()
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        self.broker.dead_letters()
    }
}

impl fmt::Debug for SqliteBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteBroker").field("path", &self.path).finish_non_exhaustive()
    }
}
