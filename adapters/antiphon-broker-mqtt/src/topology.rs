//! Makes topics and groups exist.
//!
//! A group is one session per lane: declaring it connects once under each session's client id and
//! subscribes. From then on the broker keeps the group's messages although nobody is there. The
//! record comes last, so that a group whose record exists has its sessions.

use std::collections::BTreeSet;
use std::time::Duration;

use antiphon_messaging::{Group, SubscribeError, Topology};
use futures_util::{StreamExt, TryStreamExt, stream};
use rumqttc::v5::mqttbytes::QoS;

use crate::connect::{Dial, Dialer};
use crate::error::OpenError;
use crate::hub::{Hub, Uplink};
use crate::registry::{GroupRecord, Missing, TopicRecord};

/// How many sessions are made at a time.
const AT_A_TIME: usize = 8;
/// How often a session is tried again that somebody else takes over meanwhile.
const TRIES: u32 = 10;

/// Makes sure that topics and groups exist.
pub(crate) async fn declare(hub: &Hub, topology: &Topology) -> Result<(), SubscribeError> {
    let uplink = hub.uplink(hub.dialer.settings.connect_timeout.0).await.map_err(transient)?;
    // What others have declared is known before it is compared.
    uplink.fence().await.map_err(transient)?;
    let read = topology.groups.iter().flat_map(|group| &group.topics);
    let topics: BTreeSet<&String> = topology.topics.iter().chain(read).collect();
    for topic in topics {
        declare_topic(hub, &uplink, topic).await?;
    }
    for group in &topology.groups {
        declare_group(hub, &uplink, group).await?;
    }
    Ok(())
}

async fn declare_topic(hub: &Hub, uplink: &Uplink, topic: &str) -> Result<(), SubscribeError> {
    let lanes = hub.dialer.settings.lanes;
    let found = hub.registry.lock().route(topic).map(crate::registry::Route::lanes);
    match found {
        Some(found) if found == lanes => Ok(()),
        Some(found) => Err(refused(format!(
            "topic {topic} exists with {found} lanes and broker.mqtt.lanes is {lanes}; lanes are \
             fixed, since a key must stay in its own: use {found}, or another topic"
        ))),
        None => {
            let record = TopicRecord { lanes };
            note_topic(&hub.dialer, uplink, topic, &record).await.map_err(transient)?;
            hub.registry.lock().add_topic(topic, &record);
            Ok(())
        }
    }
}

async fn declare_group(hub: &Hub, uplink: &Uplink, group: &Group) -> Result<(), SubscribeError> {
    let lanes = hub.dialer.settings.lanes;
    let found = hub.registry.lock().group(&group.name).cloned();
    let wanted: BTreeSet<String> = group.topics.iter().cloned().collect();
    let topics = match found {
        Some(found) if found.lanes != lanes => {
            return Err(refused(format!(
                "group {} exists with {} lanes and broker.mqtt.lanes is {lanes}; use {1}, or \
                 another group",
                group.name, found.lanes
            )));
        }
        Some(found) if wanted.is_subset(&found.topics) => return Ok(()),
        // What it no longer reads may still wait in its sessions, so nothing is taken away here.
        Some(found) => &found.topics | &wanted,
        None => wanted,
    };
    let record = GroupRecord { lanes, topics };
    let is_done = || {
        let registry = hub.registry.lock();
        let found = registry.group(&group.name);
        found.is_some_and(|found| record.topics.is_subset(&found.topics))
    };
    let made = make_sessions(&hub.dialer, &group.name, &record, is_done).await;
    made.map_err(|error| SubscribeError {
        context: format!("group {} cannot be declared", group.name),
        transient: error.is_transient(),
        source: Some(error.into()),
    })?;
    if is_done() {
        return Ok(());
    }
    note_group(&hub.dialer, uplink, &group.name, &record).await.map_err(transient)?;
    hub.registry.lock().add_group(&group.name, record);
    Ok(())
}

/// Tells the broker what it has forgotten.
pub(crate) async fn restore(
    dialer: &Dialer,
    uplink: &Uplink,
    missing: Missing,
) -> Result<(), OpenError> {
    let ended = |reason| OpenError::Ended { address: dialer.place(), reason };
    for (group, record) in missing.groups {
        make_sessions(dialer, &group, &record, || false).await?;
        note_group(dialer, uplink, &group, &record).await.map_err(ended)?;
    }
    for (topic, record) in missing.topics {
        note_topic(dialer, uplink, &topic, &record).await.map_err(ended)?;
    }
    Ok(())
}

async fn note_topic(
    dialer: &Dialer,
    uplink: &Uplink,
    topic: &str,
    record: &TopicRecord,
) -> Result<(), String> {
    let text = serde_json::to_string(record).map_err(|error| error.to_string())?;
    uplink.note(&dialer.names.topic_record(topic), text).await
}

async fn note_group(
    dialer: &Dialer,
    uplink: &Uplink,
    group: &str,
    record: &GroupRecord,
) -> Result<(), String> {
    let text = serde_json::to_string(record).map_err(|error| error.to_string())?;
    uplink.note(&dialer.names.group_record(group), text).await
}

/// Makes the sessions of a group, or subscribes those that exist to more. Whoever has one of them
/// is put out, and comes again; so it ends as soon as somebody else has done it.
pub(crate) async fn make_sessions(
    dialer: &Dialer,
    group: &str,
    record: &GroupRecord,
    is_done: impl Fn() -> bool,
) -> Result<(), OpenError> {
    let make = |lane| make_session(dialer, group, record, lane, &is_done);
    stream::iter((0..record.lanes).map(make)).buffer_unordered(AT_A_TIME).try_collect().await
}

async fn make_session(
    dialer: &Dialer,
    group: &str,
    record: &GroupRecord,
    lane: u32,
    is_done: impl Fn() -> bool,
) -> Result<(), OpenError> {
    let names = &dialer.names;
    let filters = filters(dialer, record, lane);
    let mut reason = String::new();
    for attempt in 0..TRIES {
        if attempt > 0 {
            // Somebody else is making it, or has it. Two that meet must not meet again.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..50))).await;
        }
        if is_done() {
            return Ok(());
        }
        let client_id = names.session(group, lane);
        // Messages that come meanwhile stay unacknowledged, and go back.
        let dial = Dial { client_id, keeps: true, receive_max: Some(1), clears: None };
        let link = dialer.connect(dial, Box::new(drop)).await?;
        match link.subscribe(filters.clone(), QoS::AtLeastOnce).await {
            Ok(()) => {
                link.close().await;
                return Ok(());
            }
            Err(refusal) if !link.is_over() => {
                let action = format!("group {group} to subscribe ({refusal})");
                return Err(OpenError::Forbidden { address: dialer.place(), action });
            }
            Err(ended) => reason = ended,
        }
    }
    Err(OpenError::Ended { address: dialer.place(), reason })
}

/// Removes a group: its sessions with all that waits in them, its notes, its record. Members that
/// are there are put out.
pub(crate) async fn remove_group(hub: &Hub, group: &str) -> Result<(), OpenError> {
    let dialer = &hub.dialer;
    let ended = |reason| OpenError::Ended { address: dialer.place(), reason };
    let uplink = hub.uplink(dialer.settings.connect_timeout.0).await.map_err(ended)?;
    uplink.fence().await.map_err(ended)?;
    let Some(record) = hub.registry.lock().group(group).cloned() else { return Ok(()) };
    // The record first: who joins from now on is refused.
    uplink.note(&dialer.names.group_record(group), String::new()).await.map_err(ended)?;
    for lane in 0..record.lanes {
        let client_id = dialer.names.session(group, lane);
        dialer.connect(Dial::passing(client_id), Box::new(drop)).await?.close().await;
    }
    let notes = dialer.look(vec![dialer.names.notes(group)]).await.map_err(ended)?;
    for note in notes.keys() {
        uplink.note(note, String::new()).await.map_err(ended)?;
    }
    uplink.fence().await.map_err(ended)
}

/// Removes a topic: messages for it are refused from then on. What groups have of it stays.
pub(crate) async fn remove_topic(hub: &Hub, topic: &str) -> Result<(), OpenError> {
    let ended = |reason| OpenError::Ended { address: hub.dialer.place(), reason };
    let uplink = hub.uplink(hub.dialer.settings.connect_timeout.0).await.map_err(ended)?;
    uplink.note(&hub.dialer.names.topic_record(topic), String::new()).await.map_err(ended)?;
    uplink.fence().await.map_err(ended)
}

/// What the session of one lane subscribes to.
pub(crate) fn filters(dialer: &Dialer, record: &GroupRecord, lane: u32) -> Vec<String> {
    record.topics.iter().map(|topic| dialer.names.lane(topic, lane)).collect()
}

pub(crate) fn transient(context: String) -> SubscribeError {
    SubscribeError { context, transient: true, source: None }
}

pub(crate) fn refused(context: String) -> SubscribeError {
    SubscribeError { context, transient: false, source: None }
}
