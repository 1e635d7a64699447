//! Streams and groups: made when they are missing, left alone when they are there.

use std::collections::BTreeMap;

use antiphon_core::BoxError;
use antiphon_messaging::{Group, Start, SubscribeError, Topology};
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisError, ServerErrorKind};
use serde::{Deserialize, Serialize};

use crate::connection::Link;
use crate::error::{refused, trouble};
use crate::names::{self, Names};
use crate::settings::Settings;
use crate::wire;

/// A group, as the hash of groups has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct GroupRecord {
    pub(crate) ordered: bool,
    /// By topic, everything up to this place is not for the group.
    pub(crate) topics: BTreeMap<String, u64>,
}

/// A group that makes a stream and is removed at once.
const MAKER: &str = "antiphon-maker";
/// How often a record is tried that others change at the same time.
const TRIES_MAX: usize = 20;

/// Makes sure that everything of the topology exists.
pub(crate) async fn declare(
    link: &Link,
    settings: &Settings,
    topology: &Topology,
) -> Result<(), SubscribeError> {
    let names = Names::new(&settings.prefix);
    let mut control = link.control();
    for topic in &topology.topics {
        names::check("topic", topic).map_err(|bad| refused(bad.to_string()))?;
        let made = declare_topic(&mut control, &names, topic).await;
        made.map_err(|error| explained(link, format!("topic {topic} cannot be declared"), error))?;
    }
    for group in &topology.groups {
        names::check("group", &group.name).map_err(|bad| refused(bad.to_string()))?;
        declare_group(link, &names, group).await?;
    }
    Ok(())
}

/// What an error means for whoever declares or joins.
pub(crate) fn explained(link: &Link, context: String, error: RedisError) -> SubscribeError {
    link.heed(&error);
    let code = error.code().unwrap_or_default();
    match code {
        "WRONGTYPE" => refused(format!(
            "{context}: its key is something else than a stream; choose another prefix, or remove it"
        )),
        "NOPERM" | "NOAUTH" => refused(format!("{context}: the user may not: {error}")),
        _ => trouble(context, error),
    }
}

async fn declare_topic(
    control: &mut MultiplexedConnection,
    names: &Names,
    topic: &str,
) -> Result<(), RedisError> {
    let stream = names.stream(topic);
    // A stream is made by making a group of it.
    let mut make = redis::cmd("XGROUP");
    make.arg("CREATE").arg(&stream).arg(MAKER).arg("$").arg("MKSTREAM");
    match make.query_async::<()>(control).await {
        Ok(()) => {}
        Err(error) if error.code() == Some("BUSYGROUP") => {}
        Err(error) => return Err(error),
    }
    let mut forget = redis::cmd("XGROUP");
    forget.arg("DESTROY").arg(&stream).arg(MAKER);
    forget.query_async::<()>(control).await?;
    redis::cmd("SADD").arg(names.topics()).arg(topic).query_async::<()>(control).await
}

async fn declare_group(link: &Link, names: &Names, group: &Group) -> Result<(), SubscribeError> {
    let mut control = link.control();
    let context = || format!("group {} cannot be declared", group.name);
    let failed = |error| explained(link, context(), error);
    for _ in 0..TRIES_MAX {
        let text: Option<String> = redis::cmd("HGET")
            .arg(names.groups())
            .arg(&group.name)
            .query_async(&mut control)
            .await
            .map_err(failed)?;
        let before = text.as_deref().map(parsed).transpose();
        let before = before.map_err(|error| trouble(context(), error))?;
        if before.as_ref().is_some_and(|before| before.ordered != group.ordered) {
            return Err(refused(format!(
                "group {} exists and reads {}; choose another name, or delete it",
                group.name,
                if group.ordered { "in any order" } else { "in order" },
            )));
        }
        let mut record = before
            .clone()
            .unwrap_or_else(|| GroupRecord { ordered: group.ordered, ..GroupRecord::default() });
        for topic in &group.topics {
            if !record.topics.contains_key(topic) {
                let floor = match group.start {
                    Start::Earliest => 0,
                    Start::Latest => last(&mut control, names, topic).await.map_err(failed)?,
                };
                record.topics.insert(topic.clone(), floor);
            }
        }
        if before.as_ref() != Some(&record) {
            let written = compare_and_set(&mut control, names, &group.name, text, &record).await;
            if !written.map_err(|error| trouble(context(), error))? {
                continue;
            }
        }
        if !record.ordered {
            for topic in &group.topics {
                make_group(&mut control, names, &group.name, topic, record.topics[topic])
                    .await
                    .map_err(failed)?;
            }
        }
        return Ok(());
    }
    Err(trouble(context(), "too many others change it at the same time"))
}

/// The place of the last entry that a stream ever had.
pub(crate) async fn last(
    control: &mut MultiplexedConnection,
    names: &Names,
    topic: &str,
) -> Result<u64, RedisError> {
    let mut ask = redis::cmd("XINFO");
    ask.arg("STREAM").arg(names.stream(topic));
    let info: BTreeMap<String, redis::Value> = ask.query_async(control).await?;
    let last = info.get("last-generated-id").cloned().unwrap_or_default();
    let id: String = redis::from_redis_value(last)?;
    Ok(wire::position(&id).unwrap_or(u64::MAX))
}

async fn make_group(
    control: &mut MultiplexedConnection,
    names: &Names,
    group: &str,
    topic: &str,
    floor: u64,
) -> Result<(), RedisError> {
    let mut make = redis::cmd("XGROUP");
    make.arg("CREATE").arg(names.stream(topic)).arg(group).arg(wire::id(floor));
    match make.query_async::<()>(control).await {
        Err(error) if error.code() == Some("BUSYGROUP") => Ok(()),
        made => made,
    }
}

fn parsed(text: &str) -> Result<GroupRecord, BoxError> {
    Ok(serde_json::from_str(text)?)
}

/// Writes a record if it is still what it was.
async fn compare_and_set(
    control: &mut MultiplexedConnection,
    names: &Names,
    group: &str,
    before: Option<String>,
    record: &GroupRecord,
) -> Result<bool, BoxError> {
    let script = redis::Script::new(
        "local found = redis.call('HGET', KEYS[1], ARGV[1]) or ''
         if found ~= ARGV[2] then return 0 end
         redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
         return 1",
    );
    let written: u8 = script
        .prepare_invoke()
        .key(names.groups())
        .arg(group)
        .arg(before.unwrap_or_default())
        .arg(serde_json::to_string(record)?)
        .invoke_async(control)
        .await?;
    Ok(written == 1)
}

/// All groups, by name.
pub(crate) async fn groups(
    control: &mut MultiplexedConnection,
    names: &Names,
) -> Result<BTreeMap<String, GroupRecord>, BoxError> {
    let all: BTreeMap<String, String> =
        redis::cmd("HGETALL").arg(names.groups()).query_async(control).await?;
    all.into_iter().map(|(name, text)| Ok((name, parsed(&text)?))).collect()
}

/// A group that is to be joined.
pub(crate) async fn group(
    link: &Link,
    names: &Names,
    group: &str,
    topics: &[String],
    ordered: bool,
) -> Result<GroupRecord, SubscribeError> {
    let context = || format!("group {group} cannot be joined");
    let mut ask = redis::cmd("HGET");
    ask.arg(names.groups()).arg(group);
    let text: Option<String> = ask
        .query_async(&mut link.control())
        .await
        .map_err(|error| explained(link, context(), error))?;
    let Some(text) = text else {
        return Err(refused(format!("group {group} was not declared; declare it first")));
    };
    let record = parsed(&text).map_err(|error| trouble(context(), error))?;
    if let Some(topic) = topics.iter().find(|topic| !record.topics.contains_key(*topic)) {
        return Err(refused(format!(
            "group {group} was not declared with topic {topic}; declare it so first"
        )));
    }
    if record.ordered != ordered {
        let (is, wants) = match ordered {
            true => ("in any order", "in order"),
            false => ("in order", "in any order"),
        };
        return Err(refused(format!("group {group} reads {is}; it cannot be read {wants}")));
    }
    Ok(record)
}

/// Whether an error says that a group or stream is not there any more.
pub(crate) fn is_gone(error: &RedisError) -> bool {
    error.code() == Some("NOGROUP")
        || (error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError)
            && error.detail().is_some_and(|detail| detail.contains("no such key")))
}

/// Removes a topic with its messages.
pub(crate) async fn delete_topic(
    link: &Link,
    names: &Names,
    topic: &str,
) -> Result<(), SubscribeError> {
    let mut pipe = redis::pipe();
    pipe.cmd("DEL").arg(names.stream(topic)).ignore();
    pipe.cmd("SREM").arg(names.topics()).arg(topic).ignore();
    let removed = pipe.query_async::<()>(&mut link.control()).await;
    removed.map_err(|error| explained(link, format!("topic {topic} cannot be removed"), error))
}

/// Removes a group and all that is known of it.
pub(crate) async fn delete_group(
    link: &Link,
    names: &Names,
    group: &str,
) -> Result<(), SubscribeError> {
    let context = || format!("group {group} cannot be removed");
    let mut control = link.control();
    let all = groups(&mut control, names).await.map_err(|error| trouble(context(), error))?;
    let Some(record) = all.get(group) else { return Ok(()) };
    for topic in record.topics.keys() {
        let mut destroy = redis::cmd("XGROUP");
        destroy.arg("DESTROY").arg(names.stream(topic)).arg(group);
        // The stream may be gone.
        let _ = destroy.query_async::<()>(&mut control).await;
    }
    let topics: Vec<String> = record.topics.keys().cloned().collect();
    let mut pipe = redis::pipe();
    pipe.cmd("DEL").arg(names.all_of(group, &topics)).ignore();
    pipe.cmd("HDEL").arg(names.groups()).arg(group).ignore();
    let removed = pipe.query_async::<()>(&mut control).await;
    removed.map_err(|error| explained(link, context(), error))
}
