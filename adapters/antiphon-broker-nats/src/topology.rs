//! Streams, buckets and groups: made when they are missing, left alone when they are as they should
//! be, refused when they are otherwise.

use std::time::Duration;

use antiphon_core::BoxError;
use antiphon_messaging::{Group, Start, SubscribeError, Topology};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{Context, ErrorCode, kv};
use futures_util::future::try_join_all;
use serde::Deserialize;

use crate::connection::Link;
use crate::error::{refused, trouble};
use crate::names;
use crate::records::{self, Begin, GroupRecord, Mode, Written};
use crate::settings::Settings;

/// How many requests wait for the server at a time.
const REQUESTS_MAX: usize = 16;
/// For how long signs of life and attempts are kept.
const LIVE_MAX_AGE: Duration = Duration::from_secs(7 * 86_400);
/// How many messages of a shared group may be in its members' hands. Whoever has credits must get
/// messages, so this is far more than members hold.
const ACK_PENDING_MAX: i64 = 1 << 20;
/// How many pulls may wait at a consumer: every member has a few.
const WAITING_MAX: i64 = 4_096;
/// How often a record is tried that others change at the same time.
const TRIES_MAX: usize = 20;

/// The two buckets.
pub(crate) async fn buckets(
    jetstream: &Context,
    settings: &Settings,
) -> Result<(kv::Store, kv::Store), BoxError> {
    let groups = bucket(jetstream, settings, "groups", Duration::ZERO).await?;
    let live = bucket(jetstream, settings, "live", LIVE_MAX_AGE).await?;
    Ok((groups, live))
}

async fn bucket(
    jetstream: &Context,
    settings: &Settings,
    what: &str,
    max_age: Duration,
) -> Result<kv::Store, BoxError> {
    let bucket = format!("{}_{what}", settings.bucket);
    if let Ok(store) = jetstream.get_key_value(&bucket).await {
        return Ok(store);
    }
    // The client's own way to make a bucket does not understand servers before 2.10.
    let config = stream::Config {
        name: format!("KV_{bucket}"),
        description: Some("antiphon: who reads what".to_owned()),
        subjects: vec![format!("$KV.{bucket}.>")],
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        max_age,
        storage: StorageType::File,
        num_replicas: settings.replicas,
        ..stream::Config::default()
    };
    match jetstream.create_stream(config).await {
        Ok(_) => Ok(jetstream.get_key_value(&bucket).await?),
        // Somebody else may have made it at the same moment.
        Err(error) => match jetstream.get_key_value(&bucket).await {
            Ok(store) => Ok(store),
            Err(_) => Err(error.into()),
        },
    }
}

/// What the server says of our account in JetStream.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Account {
    /// Bytes on disk.
    #[serde(default)]
    pub(crate) storage: u64,
    #[serde(default)]
    pub(crate) limits: AccountLimits,
    error: Option<AccountError>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct AccountLimits {
    /// Negative for none.
    #[serde(default)]
    pub(crate) max_storage: i64,
}

#[derive(Debug, Deserialize)]
struct AccountError {
    #[serde(default)]
    description: String,
}

/// Asks for our account, in which servers before 2.10 leave out what the client's own question needs.
pub(crate) async fn account(client: &async_nats::Client) -> Result<Account, BoxError> {
    let answer = client.request("$JS.API.INFO", bytes::Bytes::new()).await?;
    let account: Account = serde_json::from_slice(&answer.payload)?;
    match account.error {
        Some(error) => Err(error.description.into()),
        None => Ok(account),
    }
}

/// Makes sure that everything of the topology exists.
pub(crate) async fn declare(
    link: &Link,
    settings: &Settings,
    topology: &Topology,
) -> Result<(), SubscribeError> {
    for topic in &topology.topics {
        names::check_topic(topic).map_err(|bad| refused(bad.to_string()))?;
    }
    for some in topology.topics.chunks(REQUESTS_MAX) {
        try_join_all(some.iter().map(|topic| stream_of(link, settings, topic))).await?;
    }
    for some in topology.groups.chunks(REQUESTS_MAX) {
        try_join_all(some.iter().map(|group| declare_group(link, settings, group))).await?;
    }
    Ok(())
}

fn config(settings: &Settings, topic: &str) -> stream::Config {
    stream::Config {
        name: names::escaped(topic),
        description: Some(names::description(topic)),
        subjects: names::subjects(topic),
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: settings.replicas,
        max_age: settings.max_age.0,
        duplicate_window: settings.duplicate_window.0,
        allow_direct: true,
        ..stream::Config::default()
    }
}

async fn stream_of(
    link: &Link,
    settings: &Settings,
    topic: &str,
) -> Result<Stream, SubscribeError> {
    let wanted = config(settings, topic);
    let stream = match link.jetstream.get_stream(&wanted.name).await {
        Ok(stream) => stream,
        Err(error) if is_not_found(&error.kind()) => {
            let made = link.jetstream.create_stream(wanted.clone()).await;
            match (made, link.jetstream.get_stream(&wanted.name).await) {
                // Whoever made it.
                (_, Ok(stream)) => stream,
                (Err(error), Err(_)) => {
                    let context = format!("topic {topic}: its stream cannot be made: {error}");
                    let transient = !is_final(&error.kind());
                    return Err(SubscribeError { context, transient, source: Some(error.into()) });
                }
                (Ok(_), Err(error)) => {
                    return Err(trouble(
                        format!("topic {topic}: its stream does not answer"),
                        error,
                    ));
                }
            }
        }
        Err(error) => {
            return Err(trouble(format!("topic {topic}: its stream does not answer"), error));
        }
    };
    match difference(&wanted, &stream.cached_info().config) {
        None => Ok(stream),
        Some(difference) => Err(refused(format!(
            "topic {topic}: stream {} exists with other settings: {difference}; change the \
             settings, or the stream with `nats stream edit`",
            wanted.name
        ))),
    }
}

/// Whether waiting does not help.
fn is_final(kind: &async_nats::jetstream::context::CreateStreamErrorKind) -> bool {
    use async_nats::jetstream::context::CreateStreamErrorKind as Kind;
    match kind {
        // 500 and 503 are troubles of the server.
        Kind::JetStream(error) => error.code() < 500,
        Kind::EmptyStreamName | Kind::InvalidStreamName => true,
        _ => false,
    }
}

fn is_not_found(kind: &GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error)
        if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// What of a topic's stream is not as the settings say.
pub(crate) fn different(
    settings: &Settings,
    topic: &str,
    found: &stream::Config,
) -> Option<String> {
    difference(&config(settings, topic), found)
}

/// What of a stream is not as it should be.
fn difference(wanted: &stream::Config, found: &stream::Config) -> Option<String> {
    let age = |age: Duration| antiphon_config::HumanDuration(age).to_string();
    let mut theirs = found.subjects.clone();
    let mut ours = wanted.subjects.clone();
    theirs.sort();
    ours.sort();
    let pairs = [
        ("subjects", format!("{theirs:?}"), format!("{ours:?}")),
        ("retention", format!("{:?}", found.retention), format!("{:?}", wanted.retention)),
        ("storage", format!("{:?}", found.storage), format!("{:?}", wanted.storage)),
        ("replicas", found.num_replicas.to_string(), wanted.num_replicas.to_string()),
        ("max_age", age(found.max_age), age(wanted.max_age)),
        ("duplicate_window", age(found.duplicate_window), age(wanted.duplicate_window)),
    ];
    let different = pairs.into_iter().filter(|(_, theirs, ours)| theirs != ours);
    let texts: Vec<String> = different
        .map(|(what, theirs, ours)| format!("{what} is {theirs}, and {ours} here"))
        .collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

/// Whether there is certainly no stream for a topic.
pub(crate) async fn is_missing(link: &Link, topic: &str) -> bool {
    match link.jetstream.get_stream(names::escaped(topic)).await {
        Ok(_) => false,
        Err(error) => is_not_found(&error.kind()),
    }
}

/// The stream of a topic that was declared.
pub(crate) async fn stream(link: &Link, topic: &str) -> Result<Stream, SubscribeError> {
    match link.jetstream.get_stream(names::escaped(topic)).await {
        Ok(stream) => Ok(stream),
        Err(error) if is_not_found(&error.kind()) => {
            Err(refused(format!("topic {topic} was not declared")))
        }
        Err(error) => Err(trouble(format!("topic {topic}: its stream does not answer"), error)),
    }
}

/// When a stream was made.
pub(crate) fn made(stream: &Stream) -> i128 {
    stream.cached_info().created.unix_timestamp_nanos()
}

async fn declare_group(
    link: &Link,
    settings: &Settings,
    group: &Group,
) -> Result<(), SubscribeError> {
    names::check_group(&group.name).map_err(|bad| refused(bad.to_string()))?;
    let context = |error| trouble(format!("group {} cannot be declared", group.name), error);
    let key = records::group_key(&group.name);
    for _ in 0..TRIES_MAX {
        let found = records::read::<GroupRecord>(&link.groups, key.clone()).await;
        let found = found.map_err(context)?;
        let (before, revision) = match found {
            Some((record, revision)) => (Some(record), revision),
            None => (None, last_revision(link, &key).await.map_err(context)?),
        };
        let mut record = before
            .clone()
            .unwrap_or_else(|| GroupRecord { name: group.name.clone(), ..GroupRecord::default() });
        for topic in &group.topics {
            let stream = stream(link, topic).await?;
            begin(&mut record, topic, &stream, group.start);
        }
        if before.as_ref() != Some(&record) {
            let written = records::write(&link.groups, &key, &record, revision).await;
            if written.map_err(context)? == Written::Beaten {
                continue;
            }
        }
        if record.mode != Mode::Ordered {
            for topic in &group.topics {
                durable(link, settings, &record, topic).await?;
            }
        }
        return Ok(());
    }
    Err(context("too many others change it at the same time".into()))
}

/// The revision that writing must expect where there is no record: a deleted one counts.
async fn last_revision(link: &Link, key: &str) -> Result<u64, BoxError> {
    Ok(link.groups.entry(key).await?.map_or(0, |entry| entry.revision))
}

/// Where the group begins in a topic that is new to it, or whose stream is another one by now.
fn begin(record: &mut GroupRecord, topic: &str, stream: &Stream, start: Start) {
    let (made, last) = (made(stream), stream.cached_info().state.last_sequence);
    match record.topics.get_mut(topic) {
        None => {
            let floor = if start == Start::Latest { last } else { 0 };
            record.topics.insert(topic.to_owned(), Begin { stream: made, floor });
        }
        // Everything in a stream that was made after the group is for the group.
        Some(begin) if begin.stream != made => *begin = Begin { stream: made, floor: 0 },
        Some(_) => {}
    }
}

/// The consumer that the members of a group share which reads in any order.
pub(crate) async fn durable(
    link: &Link,
    settings: &Settings,
    record: &GroupRecord,
    topic: &str,
) -> Result<PullConsumer, SubscribeError> {
    let name = names::escaped(&record.name);
    let context = format!("group {} of topic {topic}: its consumer cannot be made", record.name);
    let stream = stream(link, topic).await?;
    if let Ok(info) = stream.consumer_info(&name).await {
        let mut config = info.config.clone();
        let as_wanted = config.ack_wait == settings.ack_wait.0
            && config.max_ack_pending == ACK_PENDING_MAX
            && config.max_deliver <= 0;
        if config.ack_policy != AckPolicy::Explicit {
            return Err(refused(format!(
                "group {} of topic {topic}: consumer {name} exists with another ack policy than \
                 explicit; remove it, or choose another name",
                record.name
            )));
        }
        if !as_wanted {
            config.ack_wait = settings.ack_wait.0;
            config.max_ack_pending = ACK_PENDING_MAX;
            config.max_deliver = -1;
            let updated = stream.create_consumer(config).await;
            updated.map_err(|error| trouble(context.clone(), error))?;
        }
        let consumer = stream.get_consumer::<pull::Config>(&name).await;
        return consumer.map_err(|error| trouble(context, error));
    }
    let floor = record.topics.get(topic).map_or(0, |begin| begin.floor);
    let deliver_policy = match floor {
        0 => DeliverPolicy::All,
        floor => DeliverPolicy::ByStartSequence { start_sequence: floor + 1 },
    };
    let config = pull::Config {
        durable_name: Some(name),
        description: Some(format!("antiphon group {}", record.name)),
        deliver_policy,
        ack_policy: AckPolicy::Explicit,
        ack_wait: settings.ack_wait.0,
        // Dead letters are the engine's business.
        max_deliver: -1,
        max_ack_pending: ACK_PENDING_MAX,
        max_waiting: WAITING_MAX,
        num_replicas: settings.replicas,
        ..pull::Config::default()
    };
    stream.create_consumer(config).await.map_err(|error| trouble(context, error))
}

/// Makes a group read in this way, if nobody reads it in another.
pub(crate) async fn enter(
    link: &Link,
    group: &str,
    topics: &[String],
    mode: Mode,
) -> Result<GroupRecord, SubscribeError> {
    let context = |error| trouble(format!("group {group} cannot be joined"), error);
    let key = records::group_key(group);
    for _ in 0..TRIES_MAX {
        let found = records::read::<GroupRecord>(&link.groups, key.clone()).await;
        let Some((mut record, revision)) = found.map_err(context)? else {
            return Err(refused(format!("group {group} was not declared; declare it first")));
        };
        if let Some(topic) = topics.iter().find(|topic| !record.topics.contains_key(*topic)) {
            return Err(refused(format!(
                "group {group} was not declared with topic {topic}; declare it so first"
            )));
        }
        if record.mode == mode {
            return Ok(record);
        }
        // Nothing but lanes knows what of an ordered group is done; consumers can be read off.
        if mode == Mode::Shared {
            return Err(refused(format!(
                "group {group} is read in order; read it in order, or declare a group of another \
                 name"
            )));
        }
        floors(link, &mut record).await?;
        record.mode = mode;
        let written = records::write(&link.groups, &key, &record, revision).await;
        if written.map_err(context)? == Written::Beaten {
            continue;
        }
        forget_durables(link, &record).await;
        return Ok(record);
    }
    Err(context("too many others change it at the same time".into()))
}

/// Takes over how far the shared consumers of a group are that is to be read in order from now on.
async fn floors(link: &Link, record: &mut GroupRecord) -> Result<(), SubscribeError> {
    let name = names::escaped(&record.name);
    for (topic, begin) in &mut record.topics {
        let Ok(info) = stream(link, topic).await?.consumer_info(&name).await else { continue };
        if info.num_ack_pending > 0 || info.num_waiting > 0 {
            return Err(SubscribeError {
                context: format!(
                    "group {} is still read in any order by others; it can be read in order when \
                     they are gone",
                    record.name
                ),
                transient: true,
                source: None,
            });
        }
        begin.floor = begin.floor.max(info.ack_floor.stream_sequence);
    }
    Ok(())
}

/// The lanes say from now on how far the group is.
async fn forget_durables(link: &Link, record: &GroupRecord) {
    let name = names::escaped(&record.name);
    for topic in record.topics.keys() {
        if let Ok(stream) = stream(link, topic).await {
            // Left behind it would only be a consumer that nobody uses.
            let _ = stream.delete_consumer(&name).await;
        }
    }
}

/// Removes a topic with its messages.
pub(crate) async fn delete_topic(link: &Link, topic: &str) -> Result<(), SubscribeError> {
    let name = names::escaped(topic);
    match link.jetstream.delete_stream(&name).await {
        Ok(_) => Ok(()),
        Err(_) if is_missing(link, topic).await => Ok(()),
        Err(error) => Err(trouble(format!("topic {topic} cannot be removed"), error)),
    }
}

/// Removes a group and all that is known of it.
pub(crate) async fn delete_group(link: &Link, group: &str) -> Result<(), SubscribeError> {
    let context = |error: BoxError| trouble(format!("group {group} cannot be removed"), error);
    let key = records::group_key(group);
    let found = records::read::<GroupRecord>(&link.groups, key.clone()).await.map_err(context)?;
    if let Some((record, _)) = found {
        forget_durables(link, &record).await;
    }
    let name = names::escaped(group);
    for (store, pattern) in [
        (&link.groups, key),
        (&link.groups, format!("l.{name}.*")),
        (&link.live, format!("m.{name}.*")),
        (&link.live, format!("a.{name}.>")),
    ] {
        let subject = format!("{}{pattern}", store.prefix);
        let purged = store.stream.purge().filter(subject).await;
        purged.map_err(|error| context(error.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_named_with_both_values() {
        let settings = Settings::default();
        let wanted = config(&settings, "shop.orders");
        assert_eq!(difference(&wanted, &wanted), None);
        let other = stream::Config {
            max_age: Duration::from_secs(60),
            retention: RetentionPolicy::WorkQueue,
            ..wanted.clone()
        };
        let text = difference(&wanted, &other).expect("a difference");
        assert!(text.contains("max_age is 1m, and 7d here"), "{text}");
        assert!(text.contains("retention is WorkQueue, and Limits here"), "{text}");
        let mut shuffled = wanted.clone();
        shuffled.subjects.reverse();
        assert_eq!(difference(&wanted, &shuffled), None, "their order does not matter");
    }
}
