//! The SQL broker: topics, groups and dead letters in one SQLite file that the processes of a
//! machine share.
//!
//! * A topic is a log; publishing adds rows at its end, several publishers' in one transaction
//!   (`writer`, `publish`).
//! * The keys of a topic are divided into lanes. The members of a group share out the lanes by
//!   leases (`keeper`); each reads the log by itself, keeps in memory what is in hand (`share`), and
//!   writes its progress down every few milliseconds. No row is changed to claim or settle it.
//! * What comes again later waits in a table of its own (`waiting`); so do delayed messages
//!   (`housekeeping`) and dead letters (`dead`).
//!
//! A consumer that dies loses its leases after five seconds; its successor begins with what was not
//! settled in the last written progress, so messages whose settlement was not written come twice.

mod core;
mod database;
mod dead;
mod housekeeping;
mod keeper;
mod member;
mod publish;
mod reader;
mod rows;
mod scan;
mod settle;
mod share;
mod source;
mod waiting;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_messaging::{
    Broker, Capabilities, DeadLetters, Group, LANES, Message, PublishError, Receipt, Source, Start,
    SubscribeError, Subscription, Topology,
};
use rusqlite::{Connection, Result, params};

use self::core::{Core, declare_topic, find};
use self::member::{Member, Topic};
use self::rows::Identity;
use self::source::MemberSource;
use self::writer::Failure;
use crate::error::{OpenError, open_error};
use crate::location;
use crate::settings::Settings;

/// The longest delay that is kept; what is longer was probably meant otherwise.
const DELAY_MAX: Duration = Duration::from_hours(24 * 365);

/// A broker in one SQLite file. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct SqliteBroker(Arc<Core>);

impl SqliteBroker {
    /// Opens the broker at `location`, a path or a `sqlite:` URL, and makes it if it is not there,
    /// with its folder. Must be called in a Tokio runtime, which then keeps house for it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(location: &str, settings: Settings) -> std::result::Result<Self, OpenError> {
        let location = location.to_owned();
        let opened = tokio::task::spawn_blocking(move || open(&location, settings)).await;
        let core = opened.map_err(|error| open_error("".as_ref(), None, error.into()))??;
        tokio::spawn(housekeeping::run(Arc::downgrade(&core)));
        Ok(Self(core))
    }
}

fn open(location: &str, settings: Settings) -> std::result::Result<Arc<Core>, OpenError> {
    let path = location::prepare(location)?;
    let writing = database::connect(&path, &settings)?;
    database::prepare(&writing, &path)?;
    let reading = database::connect(&path, &settings)?;
    Core::start(&path, settings, writing, reading)
        .map_err(|error| open_error(&path, None, error.into()))
}

impl Broker for SqliteBroker {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: self.0.settings.synchronous.durability(),
            ordered: true,
            holds_keys: true,
            retry_delay_max: DELAY_MAX,
            publish_delay_max: DELAY_MAX,
            dead_letters: true,
            counts_attempts: true,
            replays: true,
            answers: false,
            message_bytes_max: publish::MESSAGE_BYTES_MAX,
        }
    }

    async fn declare(&self, topology: &Topology) -> std::result::Result<(), SubscribeError> {
        let wanted = topology.clone();
        let present = self.0.query(move |connection| is_declared(connection, &wanted)).await;
        if present.map_err(refused("reading the topology failed"))? {
            return Ok(());
        }
        let wanted = topology.clone();
        let answer = self.0.write(move |connection| declare(connection, &wanted), |_| {});
        answer.get().await.map_err(refused("declaring the topology failed"))
    }

    async fn publish(
        &self,
        batch: Vec<Message>,
    ) -> Vec<std::result::Result<Receipt, PublishError>> {
        publish::publish(&self.0, batch).await
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> std::result::Result<Box<dyn Source>, SubscribeError> {
        let wanted = subscription.clone();
        let found = self.0.query(move |connection| find_group(connection, &wanted)).await;
        let (group, topics) = found
            .map_err(refused("reading the group failed"))?
            .map_err(|context| SubscribeError { context, transient: false, source: None })?;
        let identity = Identity {
            group,
            owner: uuid::Uuid::new_v4().to_string(),
            topics: topics.iter().map(|topic| topic.id).collect(),
        };
        let member = Member::new(Arc::clone(&self.0), identity, topics, subscription.ordered);
        tokio::spawn(keeper::keep(Arc::downgrade(&member)));
        Ok(Box::new(MemberSource(member)))
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        Some(Arc::new(dead::DeadRows(Arc::clone(&self.0))))
    }
}

fn is_declared(connection: &Connection, topology: &Topology) -> Result<bool> {
    for topic in &topology.topics {
        if find(connection, "topic", topic)?.is_none() {
            return Ok(false);
        }
    }
    for group in &topology.groups {
        for topic in &group.topics {
            if !reads(connection, &group.name, topic)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn declare(connection: &Connection, topology: &Topology) -> Result<()> {
    let of_groups = topology.groups.iter().flat_map(|group| &group.topics);
    for topic in topology.topics.iter().chain(of_groups) {
        declare_topic(connection, topic)?;
    }
    topology.groups.iter().try_for_each(|group| declare_group(connection, group))
}

fn declare_group(connection: &Connection, group: &Group) -> Result<()> {
    connection.execute("INSERT OR IGNORE INTO grp (name) VALUES (?)", [&group.name])?;
    for topic in &group.topics {
        if reads(connection, &group.name, topic)? {
            continue;
        }
        let id = declare_topic(connection, topic)?;
        let position: i64 = match group.start {
            Start::Latest => {
                let last = format!("SELECT coalesce(max(seq), 0) FROM log_{id}");
                connection.query_row(&last, [], |row| row.get(0))?
            }
            Start::Earliest => 0,
        };
        for lane in 0..LANES {
            connection
                .prepare_cached(
                    "INSERT INTO cursor (grp, topic, lane, position, open, low)
                     SELECT grp.id, ?1, ?2, ?3, x'', ?3 + 1 FROM grp WHERE name = ?4",
                )?
                .execute(params![id, lane, position, group.name])?;
        }
    }
    Ok(())
}

/// Whether the group has a cursor in the topic.
fn reads(connection: &Connection, group: &str, topic: &str) -> Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM cursor JOIN grp ON grp.id = cursor.grp
               JOIN topic ON topic.id = cursor.topic
              WHERE grp.name = ? AND topic.name = ? LIMIT 1",
        )?
        .exists([group, topic])
}

/// The group of a subscription and its topics, or why it cannot be joined.
fn find_group(
    connection: &Connection,
    subscription: &Subscription,
) -> Result<std::result::Result<(i64, Vec<Topic>), String>> {
    let name = &subscription.group;
    let Some(group) = find(connection, "grp", name)? else {
        return Ok(Err(format!("the group {name:?} was not declared")));
    };
    let mut topics = Vec::new();
    for topic in &subscription.topics {
        match find(connection, "topic", topic)? {
            Some(id) if reads(connection, name, topic)? => {
                topics.push(Topic::new(id, topic.clone()));
            }
            _ => return Ok(Err(format!("the group {name:?} was not declared to read {topic:?}"))),
        }
    }
    if topics.is_empty() {
        return Ok(Err(format!("a subscription of the group {name:?} names no topic")));
    }
    Ok(Ok((group, topics)))
}

fn refused(context: &'static str) -> impl FnOnce(Failure) -> SubscribeError {
    move |failure| SubscribeError {
        context: context.to_owned(),
        transient: true,
        source: Some(failure.into()),
    }
}

impl fmt::Debug for SqliteBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteBroker").field("path", &self.0.path).finish_non_exhaustive()
    }
}
