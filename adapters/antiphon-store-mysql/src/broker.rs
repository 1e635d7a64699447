//! The SQL broker on MySQL and MariaDB: its [`Log`](antiphon_sqlbroker::Log), with a connection that
//! writes, one that reads, and one for housekeeping. The server cannot tell processes of each
//! other's commits, so each looks, from every five milliseconds to four times a second.

mod answers;
mod dead;
mod lanes;
mod log;
mod operate;
mod publish;
mod reader;
mod scan;
mod settle;
mod tables;
mod topology;
mod trim;
mod writer;

use std::fmt;
use std::sync::Arc;

use antiphon_core::Clock;
use antiphon_messaging::{
    Broker, Capabilities, DeadLetters, Inbox, Message, Operate, PublishError, Receipt, Source,
    SubscribeError, Subscription, Topology,
};
use antiphon_sqlbroker::{Ear, SqlBroker};
use sqlx::Connection as _;
use tokio::sync::Notify;

use self::log::MysqlLog;
use crate::connect::enter;
use crate::error::OpenError;
use crate::location::Location;
use crate::migrate::Migrator;
use crate::settings::Settings;

/// A broker in a database on MySQL or MariaDB. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct MysqlBroker {
    broker: SqlBroker<MysqlLog>,
    place: Arc<str>,
}

impl MysqlBroker {
    /// Opens the broker in the database at `url`, `mysql://user:password@host:port/database`, and
    /// makes database and tables where they are missing. Must be called in a Tokio runtime, which
    /// then keeps house for it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(url: &str, settings: Settings) -> Result<Self, OpenError> {
        let location = Location::parse(url, &settings)?;
        let (mut connection, server) = enter(&location, &settings).await?;
        let mut migrator = Migrator { connection: &mut connection, location: &location };
        migrator.make(tables::BROKER).await?;
        // It has done what it was for; its end interests nobody.
        drop(connection.close().await);
        let log = MysqlLog::start(&location, &settings, &server);
        let clock = settings.clock.unwrap_or_else(Clock::system);
        let broker = SqlBroker::start(log, &Ear::default(), clock);
        broker.watch(Arc::new(Notify::new()));
        Ok(Self { broker, place: location.place().into() })
    }
}

impl Broker for MysqlBroker {
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

impl fmt::Debug for MysqlBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlBroker").field("database", &self.place).finish_non_exhaustive()
    }
}
